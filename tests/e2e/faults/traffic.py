"""A client that puts and gets without end, until it is killed: TARGET PATH SEED.

It says `stored NAME` for every prefix whose Put was answered so, `wrong NAME` if it is ever given
other bytes, and begins a new generation of names when it reads one.
"""

from __future__ import annotations

import random
import select
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from packkv.client import Client, ClientConfig, PutStatus
from packkv.errors import PackKVError
from tests.store.conftest import Payload, build_prefix

SECTIONS = (200, 3_000, 30_000)


def prefix_of(name: str) -> list[Payload]:
    """The blocks that a name stands for: the name alone says which."""
    rng = random.Random(name)
    return build_prefix(name, rng.randrange(1, 7), section_bytes=rng.choice(SECTIONS))


def put(client: Client, name: str) -> bool:
    prefix = prefix_of(name)
    results = client.put([(block.chain_hash, block.data) for block in prefix])
    return {result.status for result in results} <= {PutStatus.STORED, PutStatus.ALREADY_PRESENT}


def is_right(client: Client, name: str, *, in_place: bool) -> bool:
    """Whether what the store gives, which may be nothing, is what was put."""
    prefix = prefix_of(name)
    hashes = [block.chain_hash for block in prefix]
    if not in_place:
        blocks = client.get(hashes)
        got = [block.data if block.data is None else bytes(block.data) for block in blocks]
    else:
        with client.views(hashes) as views:
            got = [None if one.data is None else bytes(one.data) for one in views.blocks]
        if not views.are_held:
            return True
    return all(one in (None, block.data) for one, block in zip(got, prefix, strict=True))


def run(target: str, path: str, seed: str) -> None:
    rng = random.Random(seed)
    config = ClientConfig(paths=(path,), breaker_failures=1_000_000, transfer_deadline_s=20.0)
    generation, stored = "0", [f"{seed} none"]
    with Client(target, config=config) as client:
        for number in range(1 << 30):
            if select.select([sys.stdin], [], [], 0)[0]:
                generation = sys.stdin.readline().strip()
            name = f"{generation} {seed} {number}"
            try:
                if put(client, name):
                    print("stored", name, flush=True)
                    stored.append(name)
                known = rng.choice(stored[-50:])
                if not is_right(client, known, in_place=rng.random() < 0.5):
                    print("wrong", known, flush=True)
            except PackKVError:
                time.sleep(0.02)


if __name__ == "__main__":
    run(*sys.argv[1:])
