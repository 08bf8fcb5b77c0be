"""Seconds of computing that a store saves, by the order in which it evicts.

    python benchmarks/eviction.py
    python benchmarks/eviction.py --requests 2000 --seeds 1 --json

Prefixes of many depths are asked for by Zipf's law, found in part, computed from there and put, in
a tier that holds a part of them: the store's own table, worths and orders, without bytes. Each row
is the share of all seconds asked for that were saved, of the same requests, by two orders: the
longest unused first, and the least value first.
"""

import argparse
import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from packkv_store.block import BlockKey
from packkv_store.eviction import EvictionOrder
from packkv_store.store.block_table import Block, BlockTable
from packkv_store.store.worth import Worth

SHARED = 8  # blocks at the front that the prefixes of a family have in common
FAMILY = 16
ZIPF = 0.9
MEAN_BYTES = 1 << 20


@dataclass(frozen=True)
class Model:
    """What one model asks for: `prefixes` different ones, one in `1 / share` requests."""

    name: str
    block_ms: float
    share: float
    prefixes: int = 600
    says_cost: bool = True
    until: float = 1.0  # the part of the requests after which it is asked for no more


class Tier:
    """A tier of `capacity` bytes, without them."""

    def __init__(self, capacity: int, by_value: bool) -> None:
        self.capacity = capacity
        self.used = 0
        self.table = BlockTable()
        self.order = EvictionOrder(by_value)
        self.worth = Worth()

    def find(self, keys: list[BlockKey], now: float) -> int:
        """How many blocks from the front are here. They are used now."""
        blocks = self.table.get_run(keys)
        self.table.use_run(blocks, now, self._level() + self.worth.of(blocks))
        if blocks and len(blocks) < len(keys):
            self.table.expect(keys[len(blocks)], blocks[-1].key)
        return len(blocks)

    def put(self, blocks: list[Block], now: float, held: set[BlockKey]) -> None:
        level, before = self._level(), None
        for block in blocks:
            self._make_room(block.length, held)
            self.table.add(block, before)
            self.worth.add(block)
            self.table.use(block, now, level + self.worth.of([block]))
            self.order.add(block)
            self.used += block.length
            before = block.key

    def _level(self) -> float:
        return self.order.level_at(self.used / self.capacity)

    def _make_room(self, length: int, held: set[BlockKey]) -> None:
        if self.used + length <= self.capacity:
            return
        with closing(self.order.victims(held.__contains__)) as victims:
            gone: list[Block] = []
            for victim in victims:
                assert isinstance(victim, Block)
                gone.append(victim)
                self.used -= victim.length
                if self.used + length <= 0.95 * self.capacity:
                    break
        for block in gone:
            self.order.discard(block.key)
            self.table.remove(block)
            self.worth.remove(block)


class Requests:
    """`count` times a prefix of one of some models, the same whenever they are gone through."""

    def __init__(self, models: list[Model], count: int, seed: int) -> None:
        self.models = models
        self.count = count
        self._seed = seed
        rng = random.Random(seed)
        self.keys = {
            (model.name, number): _keys(model.name, number, int(2 ** rng.uniform(3, 7)))
            for model in models
            for number in range(model.prefixes)
        }
        self.footprint = MEAN_BYTES * len({key for keys in self.keys.values() for key in keys})

    def __iter__(self) -> Iterator[tuple[Model, int]]:
        rng = random.Random(self._seed + 1)
        weights = [model.share for model in self.models]
        popularity = {
            model.name: [*itertools.accumulate((n + 1) ** -ZIPF for n in range(model.prefixes))]
            for model in self.models
        }
        for number in range(self.count):
            [model] = rng.choices(self.models, weights)
            [rank] = rng.choices(range(model.prefixes), cum_weights=popularity[model.name])
            if number < model.until * self.count:
                # neighbours in popularity are of different families
                yield model, rank * 7919 % model.prefixes


CASES = {
    "one model": [Model("one", 20.0, 1.0)],
    "two models, one 10 times as dear": [Model("dear", 100.0, 0.5), Model("cheap", 10.0, 0.5)],
    "the dear one in 10 % of requests": [Model("dear", 100.0, 0.1), Model("cheap", 10.0, 0.9)],
    "the cheap one does not say": [
        Model("dear", 100.0, 0.5),
        Model("cheap", 10.0, 0.5, says_cost=False),
    ],
    "the dear one leaves after 30 %": [
        Model("dear", 100.0, 0.5, until=0.3),
        Model("cheap", 10.0, 0.5),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument(
        "--tier", type=float, nargs="+", default=[0.05, 0.1, 0.3], help="part of all bytes it holds"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs that a row is the mean of")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = [
        {"case": case, "tier": part}
        | {
            order: sum(
                saved(Requests(models, options.requests, seed), part, order == "value")
                for seed in range(options.seeds)
            )
            / options.seeds
            for order in ("use", "value")
        }
        for case, models in CASES.items()
        for part in options.tier
    ]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'':34}{'tier':>6}{'by use':>10}{'by value':>10}")
    for row in rows:
        print(f"{row['case']:34}{row['tier']:>6.0%}{row['use']:>10.1%}{row['value']:>10.1%}")


def saved(requests: "Requests", part: float, by_value: bool) -> float:
    """The share of all seconds asked for that a tier of `part` of all bytes saves."""
    tier = Tier(int(part * requests.footprint), by_value)
    asked = found = 0.0
    for now, (model, number) in enumerate(requests):
        keys = requests.keys[model.name, number]
        here = tier.find(keys, float(now))
        asked += model.block_ms * len(keys)
        found += model.block_ms * here
        rest = enumerate(keys[here:], here)
        tier.put([_block(key, at, model) for at, key in rest], float(now), set(keys))
    return found / asked


def _keys(model: str, number: int, depth: int) -> list[BlockKey]:
    family = number // FAMILY
    names = [f"{model} {family} {at}" for at in range(min(SHARED, depth))]
    names += [f"{model} {family} {number} {at}" for at in range(SHARED, depth)]
    return [BlockKey(bytes(16) + hashlib.sha256(name.encode()).digest()) for name in names]


def _block(key: BlockKey, at: int, model: Model) -> Block:
    return Block(
        key=key,
        root_hash=bytes(32),
        # payloads of one model differ by some per cent
        length=int(MEAN_BYTES * (0.9 + 0.2 * key[-1] / 255)),
        head_length=200,
        tokens=64,
        first_token=64 * at,
        first_head=0,
        heads=1,
        stored_at=0.0,
        used_at=0.0,
        compute_ms=model.block_ms if model.says_cost else 0.0,
    )


if __name__ == "__main__":
    main()
