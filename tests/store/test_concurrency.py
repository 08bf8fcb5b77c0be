"""Many callers at once, in a store that is far too small for them."""

import asyncio
import random
from pathlib import Path

import grpc
import pytest

from packkv_store.app import App
from tests.store.conftest import (
    MIB,
    Client,
    Payload,
    build_prefix,
    connected,
    serving,
    small_config,
)

CALLERS, CALLS = 8, 20


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("on_disk", [False, True], ids=["ram", "ram+disk"])
async def test_no_interleaving_of_calls_gives_a_wrong_byte(
    tmp_path: Path, seed: int, on_disk: bool
) -> None:
    folder = tmp_path if on_disk else None
    config = small_config(ram_bytes=MIB, disk_bytes=3 * MIB, data_dir=folder, sync=False)
    async with serving(config) as app:
        await asyncio.gather(
            *(call_at_random(app, random.Random(100 * seed + n)) for n in range(CALLERS))
        )
        async with connected(app.address) as client:
            # cancelled calls and leases end; what nobody will ever free stays
            async with asyncio.timeout(60):
                await client.clear()
                while (stats := await client.stats()).blocks or any(
                    tier.used_bytes for tier in stats.tiers
                ):
                    await asyncio.sleep(0.01)
                    await client.clear()
        assert stats.counters['packkv_corrupt_blocks_total{tier="ram"}'] == 0
        assert stats.counters['packkv_corrupt_blocks_total{tier="disk"}'] == 0


async def call_at_random(app: App, rng: random.Random) -> None:
    async with connected(app.address) as client:
        for _ in range(CALLS):
            prefix = build_prefix(str(rng.randrange(6)), rng.randrange(1, 7), section_bytes=15_000)
            hashes = [payload.chain_hash for payload in prefix]
            kind = rng.choice(["put", "put", "get", "get", "match", "cancel", "clear"])
            if kind == "put":
                await client.put(prefix, frame=rng.choice([5_000, 100_000]))
            elif kind == "match":
                await client.match(hashes, lease_ms=rng.randrange(50))
            elif kind == "clear":
                await client.clear(rng.choice([b"", prefix[0].root_hash]))
            elif kind == "cancel":
                await cancelled(client, prefix, rng.random() / 50)
            else:
                for block, data in (await client.get(hashes)).payloads.items():
                    assert data == prefix[block].data


async def cancelled(client: Client, prefix: list[Payload], after: float) -> None:
    try:
        async with asyncio.timeout(after):
            await client.put(prefix, frame=5_000)
    except (TimeoutError, grpc.aio.AioRpcError):
        pass
