"""The wall clock is set by people and by protocols: when it jumps, nothing else may."""

from pathlib import Path

import pytest

from packkv_store.app import App
from tests.store.conftest import (
    MIB,
    Client,
    HandClock,
    Payload,
    build_prefix,
    connected,
    serving,
    small_config,
)

HOUR = 3600.0
TTL = 60.0


class JumpingClock(HandClock):
    """A hand clock whose wall time can be set apart from the time that passes."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = 0.0

    def wall(self) -> float:
        return super().wall() + self.ahead

    def jump(self, seconds: float) -> None:
        self.ahead += seconds


@pytest.fixture
def clock() -> JumpingClock:
    return JumpingClock()


def hashes_of(prefix: list[Payload]) -> list[bytes]:
    return [payload.chain_hash for payload in prefix]


async def count(client: Client, prefix: list[Payload]) -> int:
    return int((await client.match(hashes_of(prefix))).blocks)


@pytest.mark.parametrize("jump", [HOUR, -HOUR, 1e9, -2e9])
async def test_leases_run_for_as_long_as_was_granted(clock: JumpingClock, jump: float) -> None:
    prefix = build_prefix("a", 3)
    async with serving(small_config(), clock) as app, connected(app.address) as client:
        await client.put(prefix)
        match = await client.match(hashes_of(prefix), lease_ms=5000)
        clock.move(4)
        clock.jump(jump)
        assert (await client.stats()).leases == 1
        assert len((await client.get(hashes_of(prefix), lease_id=match.lease_id)).payloads) == 3
        clock.move(1.001)
        assert (await client.stats()).leases == 0
        assert (await client.stats()).uptime_s == pytest.approx(5.001)
        assert await count(client, prefix) == 3


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_eviction_goes_by_the_time_that_passes(clock: JumpingClock, jump: float) -> None:
    old, young = (
        build_prefix(name, 3, layers=2, heads=1, section_bytes=150_000) for name in ("old", "young")
    )
    more = build_prefix("more", 1, layers=2, heads=1, section_bytes=150_000)
    config = small_config(ram_bytes=MIB)
    async with serving(config, clock) as app, connected(app.address) as client:
        await client.put(old[:2])
        clock.move(1)
        clock.jump(jump)
        await client.put(young[:2])
        clock.move(1)
        await client.put(more)
        await client.put(build_prefix("last", 1, layers=2, heads=1, section_bytes=150_000))
        assert await count(client, young[:2]) >= await count(client, old[:2])
        assert await count(client, more) == 1


async def expired(app: App, client: Client) -> int:
    await app.store.residents.expire()
    return int((await client.stats()).counters["packkv_expired_blocks_total"])


@pytest.mark.parametrize("on_disk", [False, True], ids=["ram", "ram+disk"])
async def test_a_clock_that_was_ahead_makes_no_block_immortal_and_hides_none(
    tmp_path: Path, clock: JumpingClock, on_disk: bool
) -> None:
    config = small_config(ttl_seconds=TTL, data_dir=tmp_path if on_disk else None)
    future, present = build_prefix("future", 2), build_prefix("present", 2)
    async with serving(config, clock) as app, connected(app.address) as client:
        clock.jump(HOUR)
        await client.put(future)
        clock.jump(-HOUR)
        await client.put(present)
        assert await expired(app, client) == 0
        assert await count(client, future) == await count(client, present) == 2
        clock.move(TTL + 1)
        # those that came after are not kept by those before
        assert await expired(app, client) == 4
        assert await count(client, future) == await count(client, present) == 0
        stats = await client.stats()
        assert stats.blocks == 0
        assert [tier.used_bytes for tier in stats.tiers] == [0] * len(stats.tiers)


async def test_a_clock_that_jumps_ahead_expires_early_and_breaks_nothing(
    clock: JumpingClock,
) -> None:
    prefix = build_prefix("a", 3)
    async with (
        serving(small_config(ttl_seconds=TTL), clock) as app,
        connected(app.address) as client,
    ):
        await client.put(prefix)
        # a lease outlasts the time to live: who holds one may go on
        match = await client.match(hashes_of(prefix), lease_ms=5000)
        clock.jump(HOUR)
        assert await expired(app, client) == 3
        assert len((await client.get(hashes_of(prefix), lease_id=match.lease_id)).payloads) == 3
        clock.move(6)
        await expired(app, client)
        assert (await client.stats()).blocks == 0
        await client.put(prefix)
        clock.jump(-HOUR)
        assert await count(client, prefix) == 3


async def test_a_restart_under_an_earlier_clock_keeps_what_is_on_disk(
    tmp_path: Path, clock: JumpingClock
) -> None:
    prefix = build_prefix("a", 3)
    config = small_config(ttl_seconds=TTL, data_dir=tmp_path)
    async with serving(config, clock) as app, connected(app.address) as client:
        await client.put(prefix)
    clock.jump(-HOUR)
    async with serving(config, clock) as app, connected(app.address) as client:
        assert await expired(app, client) == 0
        assert await count(client, prefix) == 3
        clock.move(TTL + 1)
        assert await expired(app, client) == 3
