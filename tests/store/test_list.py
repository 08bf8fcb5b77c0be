"""Admin.List: what a node holds, page by page."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from packkv_protos.v1 import admin_pb2
from packkv_store.app import App
from tests.store.conftest import (
    Client,
    HandClock,
    build_prefix,
    connected,
    serving,
    small_config,
)
from tests.store.test_security import TOKENS, bearer


async def page(client: Client, **request: Any) -> list[Any]:
    asked = admin_pb2.ListRequest(**request)
    return list((await client.admin.List(asked, metadata=client.metadata)).blocks)


async def names(client: Client, limit: int) -> list[bytes]:
    """Of all blocks, read in pages of so many."""
    found: list[bytes] = []
    while blocks := await page(client, after=found[-1] if found else b"", limit=limit):
        assert len(blocks) <= limit
        found += [block.chain_hash for block in blocks]
    return found


@pytest.mark.parametrize("limit", [1, 3, 10, 4096])
async def test_pages_of_any_size_give_every_block_once(client: Client, limit: int) -> None:
    prefix = build_prefix("a", 6) + build_prefix("b", 4)
    await client.put(prefix)
    assert await names(client, limit) == sorted(payload.chain_hash for payload in prefix)


async def test_a_block_is_described(client: Client, app: App) -> None:
    first, second = build_prefix("a", 2)
    await client.put([second])
    (listed,) = await page(client)
    assert listed.chain_hash == second.chain_hash
    assert listed.root_hash == first.root_hash == second.root_hash
    assert (listed.length, listed.first_token, listed.tokens) == (len(second.data), 64, 64)
    assert list(listed.tiers) == ["ram"]


async def test_after_a_restart_blocks_are_on_disk_alone(tmp_path: Path) -> None:
    config = small_config(data_dir=tmp_path)
    async with serving(config) as app, connected(app.address) as client:
        await client.put(build_prefix("a", 2))
        assert [list(block.tiers) for block in await page(client)] == [["ram", "disk"]] * 2
    async with serving(config) as app, connected(app.address) as client:
        assert [list(block.tiers) for block in await page(client)] == [["disk"]] * 2


async def test_what_is_cleared_is_not_listed_even_while_it_is_leased(
    client: Client, clock: HandClock
) -> None:
    prefix = build_prefix("a", 2)
    await client.put(prefix)
    assert (await client.match([one.chain_hash for one in prefix], lease_ms=5000)).lease_id
    await client.clear()
    assert await page(client) == []


@pytest.mark.parametrize("request_", [{"after": b"short"}, {"limit": 4097}], ids=["after", "limit"])
async def test_a_wrong_request_is_refused(client: Client, request_: dict[str, Any]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await page(client, **request_)
    assert caught.value.code() in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )


async def test_an_admin_lists_what_its_own_tenant_has(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKENS)
    async with serving(small_config(tokens_file=tokens)) as app, connected(app.address) as opened:
        red = Client(opened.channel, bearer("red secret"))
        blue = Client(opened.channel, bearer("blue new"))
        await red.put(build_prefix("a", 3))
        await blue.put(build_prefix("a", 2))
        assert len(await page(blue)) == 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await page(red)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
