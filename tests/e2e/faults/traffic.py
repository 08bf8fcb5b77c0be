"""A client that puts and gets without end, until it is killed: TARGET PATH SEED.

It says `stored NAME` for every prefix whose Put was answered so, `begun NAME` and `came NAME`
around what it gets layer by layer, `wrong NAME` if it is ever given other bytes, and begins a new
generation of names when it reads one.
"""

from __future__ import annotations

import random
import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from packkv.client import Arrived, Client, ClientConfig, Fetched, PutStatus
from packkv.errors import PackKVError
from tests.store.conftest import Payload, build_prefix

SECTIONS = (200, 3_000, 30_000)
# of each payload; so many groups at most
LAYERS = 4


def prefix_of(name: str) -> list[Payload]:
    """The blocks that a name stands for: the name alone says which."""
    rng = random.Random(name)
    return build_prefix(name, rng.randrange(1, 7), section_bytes=rng.choice(SECTIONS))


def put(client: Client, name: str) -> bool:
    prefix = prefix_of(name)
    results = client.put([(block.chain_hash, block.data) for block in prefix])
    return {result.status for result in results} <= {PutStatus.STORED, PutStatus.ALREADY_PRESENT}


def is_right(client: Client, name: str) -> bool:
    """Whether what the store gives, which may be nothing, is what was put."""
    prefix = prefix_of(name)
    return are_right(prefix, client.get([block.chain_hash for block in prefix]))


def is_right_in_place(client: Client, name: str) -> bool:
    """As `is_right`, of the store's own memory where it can be seen."""
    prefix = prefix_of(name)
    with client.views([block.chain_hash for block in prefix]) as views:
        right = are_right(prefix, views.blocks)
    return right or not views.are_held


def is_right_by_layers(client: Client, name: str) -> bool:
    """As `is_right`, and at every moment of what is said to have come until then."""
    prefix = prefix_of(name)
    looks: list[bool] = []

    def look(arrived: Arrived) -> None:
        looks.append(are_right(prefix, arrived.blocks, arrived.ends))

    print("begun", name, flush=True)
    blocks = client.get([block.chain_hash for block in prefix], on_layers=look, groups=LAYERS)
    print("came", name, flush=True)
    return all(looks) and are_right(prefix, blocks)


def are_right(
    prefix: list[Payload], blocks: Sequence[Fetched], ends: Sequence[int] | None = None
) -> bool:
    """Whether each block, up to its end, is missing or as it was put."""
    tops = ends or [len(block.data) for block in prefix]
    return all(
        one.data is None or bytes(one.data[:end]) == block.data[:end]
        for one, block, end in zip(blocks, prefix, tops, strict=True)
    )


LOOKS = (is_right, is_right_in_place, is_right_by_layers)


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
                if not rng.choice(LOOKS)(client, known):
                    print("wrong", known, flush=True)
            except PackKVError:
                time.sleep(0.02)


if __name__ == "__main__":
    run(*sys.argv[1:])
