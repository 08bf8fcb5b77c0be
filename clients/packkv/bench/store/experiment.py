"""The experiment: what is started, in which order it is measured, and what was found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from packkv.bench.store.blocks import Blocks, random_blocks
from packkv.bench.store.cpu import Foreign
from packkv.bench.store.matching import (
    Matching,
    measure_matches,
    put_small,
    steps,
    wait_until_known,
)
from packkv.bench.store.movers import Mover, RedisMover, StoreMover, TcpMover
from packkv.bench.store.plan import MATCHED_BLOCKS, Plan
from packkv.bench.store.processes import RamStore, RedisServer, TcpPeer
from packkv.bench.store.scaling import Scaling, measure_scaling
from packkv.bench.store.transfers import Progress, Transfer, measure, warm_up
from packkv.client import Client, ClientConfig
from packkv.client.config import PATHS
from packkv.errors import StoreUnavailable

__all__ = ["EMBEDDED", "REDIS", "Found", "Target", "run"]

# How blocks are located: by the node itself, or through Redis by a node that has none of them.
EMBEDDED: Final = "embedded"
REDIS: Final = "redis"

_SMALL_BYTES: Final = 1024
# What the store keeps of a Put before it is answered, and small blocks.
_SPARE_BYTES: Final = 256 << 20


@dataclass(frozen=True)
class Target:
    """A store that runs already, or with no address one that is started; how to talk to it."""

    address: str | None
    config: ClientConfig


@dataclass
class Found:
    """What was measured.

    Attributes:
        moved_bytes: by one transfer.
        transfers: of every mover.
        matches: by how blocks are located.
        scaling: of many clients.
        foreign_cores: that others kept busy meanwhile; None where the system does not tell.
        both_ends: whether CPU time of transfers is of both ends, or of the client alone.
        notes: what was left out, and why.
    """

    moved_bytes: int
    both_ends: bool
    transfers: list[Transfer] = field(default_factory=list)
    matches: dict[str, Matching] = field(default_factory=dict)
    scaling: list[Scaling] = field(default_factory=list)
    foreign_cores: float | None = None
    notes: list[str] = field(default_factory=list)


def run(target: Target, plan: Plan, index: str, folder: Path, progress: Progress) -> Found:
    """Measures everything.

    Args:
        target: the store.
        plan: sizes and counts.
        index: `REDIS` also measures a Match through Redis, between two nodes of this machine.
        folder: an empty folder for logs.
        progress: is told.

    Raises:
        ProcessFailed: a process that is needed did not start.
        StoreError, WrongResult: the store does not do what is to be measured.
    """
    progress.begin("blocks and processes", 3)
    blocks = random_blocks(plan.blocks, plan.block_bytes)
    progress.step()
    found = Found(blocks.total_bytes, both_ends=target.address is None)
    config = replace(target.config, keep_bytes=2 * blocks.total_bytes)
    with ExitStack() as stack:
        address, store_pids = _store(stack, target, folder, blocks)
        progress.step()
        paths = _store_movers(address, config, blocks, store_pids, found)
        movers = [*_references(stack, folder, blocks, found), *paths]
        for mover in movers:
            stack.callback(mover.close)
            warm_up(mover, blocks)
        progress.step()
        foreign = Foreign({os.getpid(), *(pid for mover in movers for pid in mover.others)})
        found.transfers = measure(movers, blocks, plan.rounds, progress)
        found.foreign_cores = foreign.cores()
        with Client(address, config=config) as client:
            progress.begin("Match", steps(plan.looks))
            found.matches[EMBEDDED] = _match(client, client, plan, progress)
        names = [mover.name for mover in paths]
        found.scaling = measure_scaling(address, config, names, blocks, plan, folder, progress)
        paths[-1].clear()
    if index == REDIS:
        progress.begin("Match through Redis", steps(plan.looks))
        found.matches[REDIS] = _match_through_redis(plan, folder, progress)
    return found


def _store(
    stack: ExitStack, target: Target, folder: Path, blocks: Blocks
) -> tuple[str, tuple[int, ...]]:
    """Its address, and its process if it is ours."""
    if target.address is not None:
        return target.address, ()
    ram_bytes = 3 * blocks.total_bytes + _SPARE_BYTES
    store = stack.enter_context(RamStore("the store", folder, ram_bytes))
    return store.address, (store.process.pid,)


def _references(stack: ExitStack, folder: Path, blocks: Blocks, found: Found) -> list[Mover]:
    peer = stack.enter_context(TcpPeer(folder, blocks.total_bytes))
    movers: list[Mover] = [TcpMover(peer, blocks)]
    if RedisServer.is_installed():
        movers.append(RedisMover(stack.enter_context(RedisServer(folder)), blocks))
    else:
        found.notes.append("no rows of redis: redis-server or its Python client is not installed")
    return movers


def _store_movers(
    address: str, config: ClientConfig, blocks: Blocks, pids: tuple[int, ...], found: Found
) -> Sequence[Mover]:
    """One for each path that can be had."""
    movers = []
    for path in PATHS:
        mover = StoreMover(path, address, replace(config, paths=(path,)), blocks, pids)
        try:
            mover.open()
        except StoreUnavailable as reason:
            # without any path the store itself is not there
            if path == PATHS[-1]:
                raise
            mover.close()
            found.notes.append(f"no rows of {path}: {reason}")
            continue
        movers.append(mover)
    return movers


def _match(holder: Client, asked: Client, plan: Plan, progress: Progress) -> Matching:
    small = random_blocks(MATCHED_BLOCKS, _SMALL_BYTES)
    put_small(holder, small)
    try:
        wait_until_known(asked, small)
        return measure_matches(asked, small, plan.looks, progress)
    finally:
        holder.clear(small.root_hash)


def _match_through_redis(plan: Plan, folder: Path, progress: Progress) -> Matching:
    """Asked is a node that has none of the blocks: it looks in Redis and asks their owner."""
    with RedisServer(folder) as redis:
        flags = ["--index", f"redis://127.0.0.1:{redis.port}"]
        with (
            RamStore("the owner", folder, _SPARE_BYTES, flags) as owner,
            RamStore("the other node", folder, _SPARE_BYTES, flags) as other,
            Client(owner.address) as holder,
            Client(other.address) as asked,
        ):
            return _match(holder, asked, plan, progress)
