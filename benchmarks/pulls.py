"""What a pull from node to node costs over the bulk path and over gRPC, in turn in one run.

    python benchmarks/pulls.py --mib 64 --rounds 9

Starts a Redis and three nodes: one that has the blocks, one that pulls over the bulk path and one
that has that path turned off. Nothing is sent to a client. One JSON object on standard output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc

from packkv.bench.store.blocks import Blocks, random_blocks
from packkv.bench.store.cpu import Foreign, cpu_seconds
from packkv.bench.store.processes import RamStore, RedisServer
from packkv.client import Client
from packkv_protos.v1 import block_store_pb2 as pb
from packkv_protos.v1 import block_store_pb2_grpc

BLOCK_BYTES = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=64, help="of one pull")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    print(json.dumps(measure(given.mib, given.rounds), indent=1))


def measure(mib: int, rounds: int) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(RedisServer(folder))
        index = ["--index", f"redis://127.0.0.1:{redis.port}"]
        ram = 6 * mib << 20

        def node(name: str, *flags: str) -> RamStore:
            return stack.enter_context(RamStore(name, folder, ram, [*index, *flags]))

        owner = node("owner")
        pullers = {"bulk": node("bulk"), "grpc": node("grpc", "--bulk-listen", "off")}
        blocks = random_blocks(mib, BLOCK_BYTES)
        with Client(owner.address) as client:
            client.put(blocks.pairs)
            identity = client.stats().node
        foreign = Foreign([one.process.pid for one in (owner, *pullers.values())])
        figures: dict[str, Any] = {"MiB": mib, "rounds": rounds}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in pullers}
        for _ in range(rounds + 1):
            for name, puller in pullers.items():
                taken[name].append(take(owner, puller, identity, blocks))
        gigabytes = blocks.total_bytes / 1e9
        for name, times in taken.items():
            # the first makes connections and touches memory
            seconds, cpu = zip(*times[1:], strict=True)
            figures[name] = {
                "CPU s/GB, owner and puller, median": round(statistics.median(cpu) / gigabytes, 3),
                "CPU s/GB, best": round(min(cpu) / gigabytes, 3),
                "GB/s, best": round(gigabytes / min(seconds), 2),
                "GB/s, median": round(gigabytes / statistics.median(seconds), 2),
            }
        ratios = [g[1] / b[1] for b, g in zip(taken["bulk"][1:], taken["grpc"][1:], strict=True)]
        figures["CPU of grpc over bulk, median of rounds"] = round(statistics.median(ratios), 2)
        figures["cores that others kept busy"] = round(foreign.cores() or 0.0, 2)
    return figures


def take(owner: RamStore, puller: RamStore, identity: str, blocks: Blocks) -> tuple[float, float]:
    """Seconds and CPU seconds of both nodes until the puller has the blocks, verified."""
    with Client(puller.address) as client, grpc.insecure_channel(puller.address) as channel:
        client.clear()
        store = block_store_pb2_grpc.BlockStoreStub(channel)
        request = pb.TakeRequest(chain_hashes=blocks.names, node=identity)
        pids = [owner.process.pid, puller.process.pid]
        busy, began = cpu_seconds(pids), time.perf_counter()
        reply = store.Take(request, timeout=120)
        took, cost = time.perf_counter() - began, cpu_seconds(pids) - busy
    if not all(reply.here):
        raise SystemExit(f"{list(reply.here).count(False)} of {len(blocks.names)} blocks missing")
    return took, cost


if __name__ == "__main__":
    main()
