"""What is dear to compute stays longer than what is cheap, and nothing for ever."""

import json
import random
import statistics
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from packkv_store.block import BlockKey
from packkv_store.eviction import EvictionOrder
from packkv_store.store.block_table import Block, BlockTable
from packkv_store.store.worth import MOST, UNIT_MS, Worth
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

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "eviction.py"
SIZES: dict[str, Any] = {"layers": 2, "heads": 1, "section_bytes": 100_000}


def block(number: int, compute_ms: float = 0.0, length: int = 1000, depth: int = 0) -> Block:
    key = BlockKey(bytes(16) + number.to_bytes(32))
    return Block(
        key, bytes(32), length, 200, 64, 64 * depth, 0, 1,
        stored_at=0.0, used_at=0.0, compute_ms=compute_ms,
    )  # fmt: skip


def of(blocks: list[Block]) -> Worth:
    worth = Worth()
    for one in blocks:
        worth.add(one)
    return worth


def test_worth_is_relative_to_the_average_by_byte() -> None:
    # 5 ms a kB on average
    cheap, dear, usual = block(1, 1.0), block(2, 9.0), block(3, 5.0)
    worth = of([cheap, dear, usual])
    assert worth.of([dear]) == pytest.approx(2.0)
    assert worth.of([cheap]) == 1 / MOST
    assert worth.of([usual]) == 1
    # of half the bytes, as in cold form, each saves twice as much
    assert worth.of([block(4, 5.0, length=500)]) == 2


def test_the_block_that_goes_first_stands_for_its_prefix() -> None:
    cheap, dear = block(1, 1.0), block(2, 9.0)
    worth = of([cheap, dear])
    assert worth.of([cheap, dear]) == worth.of([dear]) > worth.of([dear, cheap])


def test_blocks_of_which_nobody_says_anything_are_average() -> None:
    known, unknown = block(1, 50.0), block(2)
    worth = of([known, unknown])
    assert worth.of([unknown]) == worth.of([known]) == 1
    assert worth.of([]) == 1
    assert Worth().of([known]) == 1


def test_no_worth_is_beyond_its_bounds() -> None:
    blocks = [block(number, 1.0) for number in range(1, 1000)]
    dear, cheap = block(1000, 65_504.0), block(1001, UNIT_MS)
    worth = of([*blocks, dear, cheap])
    assert worth.of([dear]) == MOST
    assert worth.of([cheap]) == 1 / MOST


def test_blocks_of_one_model_are_worth_the_same() -> None:
    blocks = [block(number, 12.3, length=920 + number) for number in range(160)]
    worth = of(blocks)
    assert {worth.of([one]) for one in blocks} == {1.0}


def test_nothing_is_left_of_blocks_that_are_gone() -> None:
    rng = random.Random(0)
    blocks = [block(n, rng.uniform(1e-6, 6e4), rng.randrange(1, 1 << 30)) for n in range(1000)]
    for one in blocks:
        one.compute_ms = one.compute_ms // UNIT_MS * UNIT_MS
    worth = of(blocks)
    for one in blocks[1:]:
        worth.remove(one)
    assert worth.of(blocks[:1]) == 1
    worth.remove(blocks[0])
    assert {(known.units, known.size) for known in worth._known.values()} == {(0, 0)}


class Tier:
    """Table, worths and order as a node has them, and which block is in front of which."""

    def __init__(self, by_value: bool = True) -> None:
        self.table, self.order, self.worth = BlockTable(), EvictionOrder(by_value), Worth()
        self.parents: dict[BlockKey, BlockKey | None] = {}
        self.now = 0.0

    def ask(self, prefix: list[Block], most: int) -> None:
        """A match of the prefix, then a put of what is missing, in a tier of so many blocks."""
        self.now += 1
        held = {one.key for one in prefix}
        found = self.table.get_run([one.key for one in prefix])
        level = self.order.level_at(len(self.table) / most)
        self.table.use_run(found, self.now, level + self.worth.of(found))
        if found and len(found) < len(prefix):
            self.table.expect(prefix[len(found)].key, found[-1].key)
        before = found[-1].key if found else None
        for one in prefix[len(found) :]:
            while len(self.table) >= most:
                assert self.evict(held) is not None
            added = block(0, one.compute_ms, one.length)
            added.key, added.first_token = one.key, one.first_token
            self.table.add(added, before)
            self.worth.add(added)
            self.table.use(added, self.now, level + self.worth.of([added]))
            self.order.add(added)
            self.parents[added.key], before = before, added.key

    def evict(self, held: set[BlockKey]) -> BlockKey | None:
        with closing(self.order.victims(held.__contains__)) as victims:
            victim = next(victims, None)
        if victim is None:
            return None
        assert isinstance(victim, Block)
        self.order.discard(victim.key)
        self.table.remove(victim)
        self.worth.remove(victim)
        return victim.key

    def heads_are_here(self) -> bool:
        """Whether every block that is here has the one before it."""
        return all(
            before is None or self.table.get(before) is not None
            for key, before in self.parents.items()
            if self.table.get(key) is not None
        )


def prefixes(rng: random.Random, says_cost: bool) -> list[list[Block]]:
    """Of a tree: each begins as another one does; costs differ from block to block."""
    found: list[list[Block]] = []
    for number in range(40):
        shared = rng.choice(found)[: rng.randrange(6)] if found else []
        own = range(len(shared), len(shared) + rng.randrange(1, 8))
        found.append(
            shared
            + [
                block(
                    100 * number + depth + 1,
                    rng.choice([0.0, 0.5, 5.0, 90.0, 4000.0]) if says_cost else 0.0,
                    rng.randrange(500, 2000),
                    depth,
                )
                for depth in own
            ]
        )
    return found


@pytest.mark.parametrize("seed", range(8))
def test_a_tail_never_outlives_its_head_whatever_they_cost(seed: int) -> None:
    rng = random.Random(seed)
    tier, known = Tier(), prefixes(rng, says_cost=True)
    for _ in range(600):
        wanted = rng.choice(known)
        tier.ask(wanted[: rng.randrange(1, len(wanted) + 1)], most=40)
        assert tier.heads_are_here()


@pytest.mark.parametrize("seed", range(4))
def test_without_costs_the_order_is_that_of_use(seed: int) -> None:
    gone: list[list[BlockKey | None]] = []
    for by_value in (False, True):
        rng = random.Random(seed)
        tier, known = Tier(by_value), prefixes(rng, says_cost=False)
        gone.append([])
        for _ in range(300):
            tier.ask(rng.choice(known), most=40)
            gone[-1].append(tier.evict(set()) if len(tier.table) > 30 else None)
    assert gone[0] == gone[1]
    assert any(gone[0])


def stay(compute_ms: float) -> float:
    """How many blocks of 1 ms come, into a tier of 50, before one that nobody uses goes; on
    average over the moments at which it may come."""
    return statistics.mean(stay_from(compute_ms, 150 + phase) for phase in range(0, 50, 5))


def stay_from(compute_ms: float, comes: int) -> int:
    tier, odd = Tier(), block(0, compute_ms)
    for number in range(1, 3000):
        tier.ask([odd if number == comes else block(number, 1.0)], most=50)
        if number > comes and tier.table.get(odd.key) is None:
            return number - comes
    raise AssertionError("it stays for ever")


def test_what_is_dear_stays_longer_and_nothing_for_ever() -> None:
    assert stay(1.0) == 50
    assert stay(0.5) == pytest.approx(25, abs=5)
    assert stay(2.0) == pytest.approx(100, abs=5)
    assert stay(100.0) < stay(65_504.0)
    # beside it all others count as the least
    assert stay(65_504.0) <= (MOST**2 + 1) * 50


def hashes_of(prefix: list[Payload]) -> list[bytes]:
    return [payload.chain_hash for payload in prefix]


async def count(client: Client, prefix: list[Payload]) -> int:
    return int((await client.match(hashes_of(prefix))).blocks)


@pytest.mark.parametrize(("dear_ms", "stays"), [(200.0, True), (2.0, False), (0.0, False)])
async def test_a_server_keeps_what_is_dear(clock: HandClock, dear_ms: float, stays: bool) -> None:
    dear = build_prefix("dear", 1, compute_ms=dear_ms, **SIZES)
    config = small_config(ram_bytes=MIB)
    async with serving(config, clock) as app, connected(app.address) as client:
        await client.put(dear)
        for number in range(6):
            clock.move(1)
            await client.put(build_prefix(f"cheap {number}", 1, compute_ms=2.0, **SIZES))
        assert (await client.stats()).counters['packkv_evictions_total{tier="ram"}'] > 0
        assert await count(client, dear) == stays
        await client.clear()
        known = app.store.residents._worth._known
        assert {(one.units, one.size) for one in known.values()} == {(0, 0)}


async def test_ram_before_a_disk_goes_by_use_and_the_disk_by_value(
    tmp_path: Path, clock: HandClock
) -> None:
    dear = build_prefix("dear", 1, compute_ms=200.0, **SIZES)
    config = small_config(ram_bytes=MIB, disk_bytes=2 * MIB, data_dir=tmp_path, sync=False)
    async with serving(config, clock) as app, connected(app.address) as client:
        await client.put(dear)
        for number in range(14):
            clock.move(1)
            await client.put(build_prefix(f"cheap {number}", 1, compute_ms=2.0, **SIZES))
        evicted = (await client.stats()).counters
        assert evicted['packkv_evictions_total{tier="disk"}'] > 0
        # not in RAM, where all that came later was used later
        match = await client.match(hashes_of(dear))
        assert list(match.tiers) == [2]
    # after a restart nobody knows what follows what: all count alike, and nothing breaks
    async with serving(config, clock) as app, connected(app.address) as client:
        assert await count(client, dear) == 1
        await client.put(build_prefix("one more", 1, compute_ms=2.0, **SIZES))
        assert len((await client.get(hashes_of(dear))).payloads) == 1


def test_value_saves_no_less_of_one_model_and_more_of_two() -> None:
    words = [BENCHMARK, "--requests", "500", "--seeds", "1", "--tier", "0.05", "--json"]
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, timeout=250, check=True
    )
    rows = {row["case"]: row for row in json.loads(done.stdout)}
    assert rows["one model"]["value"] == rows["one model"]["use"] > 0.1
    two = rows["two models, one 10 times as dear"]
    assert two["value"] > two["use"] + 0.02
    rare = rows["the dear one in 10 % of requests"]
    assert rare["value"] > rare["use"] + 0.05
