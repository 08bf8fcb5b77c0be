"""A tenant's RAM is its own, and its share of the disk is sure: others do not take from them.
What is set, who may see it, and what is refused; how rates hold is in tests/store/pace."""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.app import App, load_access
from packkv_store.block import TierName
from packkv_store.clock import SystemClock
from packkv_store.config import StoreConfig
from packkv_store.errors import ConfigError
from packkv_store.pace import Pace
from packkv_store.tenant import Access, Tenant
from tests.store.conftest import MIB, build_prefix, connected, serving, small_config


def config_of(tmp_path: Path, **shares: object) -> StoreConfig:
    """Tenants with their line of the tokens file; the token is the tenant's name."""
    path = tmp_path / "tokens.toml"
    tables = (
        f'[tenants.{name}]\ntoken_sha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n{line}\n'
        for name, line in shares.items()
    )
    path.write_text("".join(tables))
    return small_config(tokens_file=path, ram_bytes=4 * MIB, lease_seconds=60.0)


def disk_config_of(tmp_path: Path, **shares: object) -> StoreConfig:
    config = config_of(tmp_path, **shares)
    return replace(config, data_dir=tmp_path / "data", disk_bytes=8 * MIB, sync=False)


def arenas(app: App) -> dict[str, int]:
    return {tenant.name: app.store.arena(tenant).capacity_bytes for tenant in app._access.tenants}


def bearer(name: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {name}")]


async def test_shares_are_equal_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, red="", blue="")) as app:
        assert arenas(app) == {"red": 2 * MIB, "blue": 2 * MIB}
    async with serving(config_of(tmp_path, red="ram = 3", blue="", ops="ram = 0")) as app:
        assert arenas(app) == {"red": 3 * MIB, "blue": 1 * MIB, "ops": 0}


async def test_without_tenants_everybody_has_all_of_it() -> None:
    async with serving(small_config(ram_bytes=4 * MIB)) as app:
        assert arenas(app) == {"": 4 * MIB}


async def test_one_tenant_cannot_push_out_another(tmp_path: Path) -> None:
    quiet = build_prefix("quiet", 4, section_bytes=30_000)
    async with (
        serving(config_of(tmp_path, red="", blue="")) as app,
        connected(app.address, bearer("red")) as red,
        connected(app.address, bearer("blue")) as blue,
    ):
        await blue.put(quiet)
        for number in range(8):
            loud = build_prefix(f"loud {number}", 4, section_bytes=30_000)
            results = await red.put(loud)
            assert {one.status for one in results} == {pb.PUT_STATUS_STORED}
        assert app.store.residents.tally.evicted[TierName.RAM] > 0
        assert (await blue.match([b.chain_hash for b in quiet])).blocks == 4
        assert (await red.match([b.chain_hash for b in loud])).blocks == 4


async def test_a_full_tenant_is_refused_while_another_has_room(tmp_path: Path) -> None:
    held = build_prefix("held", 9, section_bytes=30_000)
    more = build_prefix("more", 1, section_bytes=100_000)
    async with (
        serving(config_of(tmp_path, red="", blue="")) as app,
        connected(app.address, bearer("red")) as red,
        connected(app.address, bearer("blue")) as blue,
    ):
        await red.put(held)
        leased = await red.match([b.chain_hash for b in held], lease_ms=60_000)
        assert leased.blocks == 9
        assert [one.status for one in await red.put(more)] == [pb.PUT_STATUS_REJECTED]
        assert [one.status for one in await blue.put(more)] == [pb.PUT_STATUS_STORED]


async def test_a_tenant_without_ram_is_told_so(tmp_path: Path) -> None:
    async with (
        serving(config_of(tmp_path, red="", ops="ram = 0\nadmin = true")) as app,
        connected(app.address, bearer("ops")) as ops,
    ):
        [result] = await ops.put(build_prefix("a", 1))
        assert result.status == pb.PUT_STATUS_REJECTED
        assert "capacity 0 bytes" in result.reason
        assert (await ops.match([bytes(32)])).blocks == 0
        assert (await ops.stats()).tiers[0].capacity_bytes == 4 * MIB


async def test_one_tenant_cannot_push_another_off_the_disk(tmp_path: Path) -> None:
    quiet = build_prefix("quiet", 8, section_bytes=30_000)  # 2 MiB, of 4 that are sure to it
    config = disk_config_of(tmp_path, red="", blue="")
    async with (
        serving(config) as app,
        connected(app.address, bearer("red")) as red,
        connected(app.address, bearer("blue")) as blue,
    ):
        await blue.put(quiet)
        for number in range(10):
            loud = build_prefix(f"loud {number}", 4, section_bytes=30_000)
            results = await red.put(loud)
            assert {one.status for one in results} == {pb.PUT_STATUS_STORED}
        assert app.store.residents.tally.evicted[TierName.DISK] > 0
    # RAM is gone: what is left is on disk
    async with (
        serving(config) as app,
        connected(app.address, bearer("red")) as red,
        connected(app.address, bearer("blue")) as blue,
    ):
        assert (await blue.match([b.chain_hash for b in quiet])).blocks == 8
        assert (await red.match([b.chain_hash for b in loud])).blocks == 4
        # more than its share, for as long as nobody else needs the room
        used = app.store.residents.disk
        assert used is not None
        assert sum(b.length for b in used.blocks()) > 7 * MIB


async def test_who_needs_his_share_of_the_disk_gets_it_from_who_has_more(tmp_path: Path) -> None:
    config = disk_config_of(tmp_path, red="disk = 3", blue="")
    async with (
        serving(config) as app,
        connected(app.address, bearer("red")) as red,
        connected(app.address, bearer("blue")) as blue,
    ):
        for number in range(5):
            await blue.put(build_prefix(f"first {number}", 8, section_bytes=30_000))
        for number in range(5):
            await red.put(build_prefix(f"then {number}", 8, section_bytes=30_000))
        disk = app.store.residents.disk
        assert disk is not None
        sizes = {"red": 0, "blue": 0}
        for block in disk.blocks():
            sizes["red" if block.key.startswith(Tenant("red").tag) else "blue"] += block.length
    assert sizes["red"] > 2.5 * sizes["blue"] > 3 * MIB


async def test_a_tenant_without_disk_has_its_blocks_in_ram_alone(tmp_path: Path) -> None:
    prefix = build_prefix("a", 3)
    config = disk_config_of(tmp_path, red="disk = 0", blue="")
    names = [b.chain_hash for b in prefix]
    async with serving(config) as app, connected(app.address, bearer("red")) as red:
        results = await red.put(prefix)
        assert {one.status for one in results} == {pb.PUT_STATUS_STORED}
        assert list((await red.match(names)).tiers) == [pb.TIER_RAM] * 3
        assert len((await red.get(names)).payloads) == 3
        assert app.store.residents.disk is not None
        assert len(app.store.residents.disk) == 0
    async with serving(config) as app, connected(app.address, bearer("red")) as red:
        assert (await red.match(names)).blocks == 0


async def test_an_admin_sees_what_all_have_and_others_what_is_theirs(tmp_path: Path) -> None:
    lines = 'disk = 3\nput_rate = "1GiB"\nget_rate = 4194304\nburst = "2MiB"'
    config = disk_config_of(tmp_path, red=lines, blue="", ops="ram = 0\nadmin = true")
    prefix = build_prefix("a", 3, section_bytes=30_000)
    async with (
        serving(config) as app,
        connected(app.address, bearer("red")) as red,
        connected(app.address, bearer("ops")) as ops,
    ):
        await red.put(prefix)
        [own] = (await red.quotas()).tenants
        everyones = (await ops.quotas()).tenants
        [disk] = [tier for tier in (await ops.stats()).tiers if tier.tier == "disk"]
    assert [one.tenant for one in everyones] == ["red", "blue", "ops"]
    assert own == everyones[0]
    size = sum(len(block.data) for block in prefix)
    ram, on_disk = own.tiers
    assert (ram.tier, ram.sure_bytes, on_disk.tier) == ("ram", 2 * MIB, "disk")
    assert size <= ram.used_bytes <= 1.1 * size
    assert size <= on_disk.used_bytes <= 1.1 * size
    sure = {one.tenant: one.tiers[1].sure_bytes for one in everyones}
    assert sum(sure.values()) <= disk.capacity_bytes
    assert sure["red"] == pytest.approx(3 * sure["blue"], abs=3)
    assert (own.put.bytes_per_s, own.put.burst_bytes, own.put.moved_bytes) == (
        1 << 30,
        2 * MIB,
        size,
    )
    assert (own.get.bytes_per_s, own.get.moved_bytes, own.get.waiting) == (4 * MIB, 0, 0)
    assert everyones[1].put.bytes_per_s == 0


async def test_what_a_tenant_may_have_is_nobody_elses_business(tmp_path: Path) -> None:
    async with (
        serving(config_of(tmp_path, red="", blue="")) as app,
        connected(app.address, bearer("nobody")) as stranger,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stranger.quotas()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_rates_are_numbers_or_sizes_and_a_burst_is_a_second_of_them() -> None:
    digest = hashlib.sha256(b"red").hexdigest()
    lines = {"token_sha256": digest, "put_rate": "1.5MiB", "get_rate": 70_000}
    [red] = Access.from_tokens({"red": lines}).tenants
    assert (red.put_rate, red.get_rate, red.burst) == (3 * MIB // 2, 70_000, 0)
    pace = Pace([red], SystemClock())
    buckets = [(one.rate, one.burst) for _, _, one in pace.buckets()]
    assert buckets == [(3 * MIB // 2, 3 * MIB // 2), (70_000, 70_000)]


@pytest.mark.parametrize("setting", ["put_rate", "get_rate", "burst"])
@pytest.mark.parametrize(
    "value", ['"fast"', "-1", "true", "1.5", "1000", '"2TiB"', "inf", "[]", '"1000"']
)
def test_what_is_no_rate_is_refused_with_what_one_is(
    tmp_path: Path, setting: str, value: str
) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(f'[tenants.red]\ntoken_sha256 = "{64 * "a"}"\n{setting} = {value}\n')
    with pytest.raises(ConfigError) as refused:
        load_access(path)
    said = tomllib.loads(f"value = {value}")["value"]
    assert f"{setting} of red is {said!r}; write bytes" in str(refused.value)
    assert "from 65536 to 1099511627776" in str(refused.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('put_rte = "1GiB"', "red has 'put_rte'; a tenant may have: token_sha256, admin, ram,"),
        ('burst = "1MiB"', "burst of red is 1048576 and it has no rate"),
        ("admin = 1", "admin of red is 1; write true or false"),
    ],
)
def test_a_line_that_would_mean_nothing_is_refused(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        App(config_of(tmp_path, red=line))


@pytest.mark.parametrize("tier", ["ram", "disk"])
@pytest.mark.parametrize("share", ['"2GiB"', "-1", "true", "inf", "nan"])
def test_a_share_is_a_number(tmp_path: Path, tier: str, share: str) -> None:
    config = config_of(tmp_path, red=f"{tier} = {share}")
    with pytest.raises(ConfigError, match=f"{tier} of red is"):
        App(config)


def test_shares_that_leave_too_little_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the least is 1048576"):
        App(config_of(tmp_path, red="ram = 100", blue="ram = 1"))
    with pytest.raises(ConfigError, match="ram of every tenant is 0"):
        App(config_of(tmp_path, red="ram = 0"))


def test_a_tenant_with_two_tokens_is_one_tenant() -> None:
    digests = [hashlib.sha256(text).hexdigest() for text in (b"old", b"new")]
    access = Access.from_tokens({"red": {"token_sha256": digests, "ram": 2, "disk": 3}})
    assert access.tenants == [Tenant("red", ram=2.0, disk=3.0)]
