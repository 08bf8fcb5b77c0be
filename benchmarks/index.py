"""What the index costs in a Redis that runs: bytes a block, and the time of a match.

    redis-server --port 6390 --save "" &
    python benchmarks/index.py redis://127.0.0.1:6390 --blocks 200000

Empty the Redis before: its whole memory is counted. Two nodes tell it of the same blocks, one after
the other, and a third looks for 2,048 of them at a time. One JSON object on standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

from redis import Redis, RedisCluster
from redis.cluster import ClusterNode

from packkv_store.block import BlockKey, TierName
from packkv_store.index import Location
from packkv_store.index.redis.redis_index import Pace, RedisIndex
from packkv_store.index.redis.url import RedisUrl

RUN = 2048
LOOKS = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", help="redis://… or redis+cluster://…, without credentials")
    parser.add_argument("--blocks", type=int, default=200_000)
    given = parser.parse_args()
    print(
        json.dumps(
            asyncio.run(measure(RedisUrl.parse(given.url), given.blocks)),
            indent=1,
            ensure_ascii=False,
        )
    )


async def measure(url: RedisUrl, blocks: int) -> dict[str, Any]:
    nodes = [RedisIndex(f"benchmark {name}", url, Pace(deadline=5.0)) for name in "abc"]
    for node in nodes:
        await node.start("127.0.0.1:1")
    keys = [BlockKey(bytes(16) + os.urandom(32)) for _ in range(blocks)]
    unknown = [BlockKey(bytes(16) + os.urandom(32)) for _ in range(RUN)]
    figures: dict[str, Any] = {"redis": str(url), "blocks": blocks}
    a, b, c = nodes
    for places, node in enumerate((a, b), 1):
        memory, busy, began = *used(url), time.perf_counter()
        await tell(node, c, keys, places)
        took = time.perf_counter() - began
        now, busy_now = used(url)
        figures[f"bytes a block, location {places}"] = round((now - memory) / blocks, 1)
        figures[f"blocks told a second, location {places}"] = round(blocks / took)
        figures[f"redis µs a block told, location {places}"] = round(
            (busy_now - busy) / blocks * 1e6, 2
        )
    figures[f"{RUN} found"] = await look(url, c, keys)
    figures[f"{RUN} unknown"] = await look(url, c, unknown)
    for node in nodes:
        await node.stop()
    return figures


async def tell(node: RedisIndex, reader: RedisIndex, keys: Sequence[BlockKey], places: int) -> None:
    """Returns when others find every block there."""
    # in portions, as puts do: what is not sent yet is kept in a bounded list
    for first in range(0, len(keys), RUN):
        part = keys[first : first + RUN]
        await node.publish(part, Location(node.node, TierName.DISK))
        while any(len(found) < places for found in await reader.locate(part[-1:])):
            await asyncio.sleep(0.001)


async def look(url: RedisUrl, node: RedisIndex, keys: Sequence[BlockKey]) -> dict[str, float]:
    times, busy, own = [], used(url)[1], time.process_time()
    for number in range(LOOKS):
        first = number * 97 % (len(keys) - RUN + 1)
        part = keys[first : first + RUN]
        began = time.perf_counter()
        await node.locate(part)
        times.append(1000 * (time.perf_counter() - began))
    own = time.process_time() - own
    return {
        "p50 ms": round(statistics.median(times), 2),
        "p99 ms": round(statistics.quantiles(times, n=100)[98], 2),
        "redis ms": round(1000 * (used(url)[1] - busy) / LOOKS, 2),
        "node ms": round(1000 * own / LOOKS, 2),
    }


def used(url: RedisUrl) -> tuple[int, float]:
    """Bytes of memory and seconds of CPU of all masters."""
    if url.kind == "cluster":
        nodes = [ClusterNode(*one) for one in url.addresses]  # type: ignore[no-untyped-call]
        cluster: Any = RedisCluster(startup_nodes=nodes)
        told = cluster.info(target_nodes=RedisCluster.PRIMARIES)
        infos = list(told.values())
    else:
        [(host, port)] = url.addresses
        with Redis(host=host, port=port, db=url.db) as client:
            infos = [client.info()]
    memory = sum(info["used_memory"] for info in infos)
    return memory, sum(info["used_cpu_user"] + info["used_cpu_sys"] for info in infos)


if __name__ == "__main__":
    main()
