"""The experiment: compute once, publish, load over every link, and let the prefix cache choose."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import torch
from transformers import PreTrainedModel

from packkv.bench.store.processes import RamStore, free_port
from packkv.bench.ttft.first_token import FirstToken, first_token
from packkv.bench.ttft.plan import Plan
from packkv.bench.ttft.publishing import (
    SPARE_BYTES,
    Incomplete,
    Progress,
    Published,
    publish,
    values_bytes,
)
from packkv.client import Client, ClientConfig
from packkv.demo.processes import Child
from packkv.errors import ConfigError
from packkv.prefix_cache import PrefixCache, PrefixCacheConfig
from packkv_kernels.paged_cache import PagedCache

__all__ = ["MEASURED", "SIMULATED", "Choice", "Found", "Row", "run"]

MEASURED: Final = "measured"
SIMULATED: Final = "simulated"

# Its name for this machine is not the store's, so that every port of it can be the link's.
_LINK_HOST: Final = "127.0.0.2"
_STORE_HOST: Final = "127.0.0.1"
# The prefix cache explores with its first loads; what it chooses counts once it knows the link.
_EXPLORING_LOADS: Final = 2
# A median of loads that take longer than this together would not be better for more of them.
_ENOUGH_S: Final = 5.0
_START_S: Final = 30.0
# Not the memory that is shared on one host: it stands for a remote store.
_REMOTE: Final = ClientConfig(paths=("bulk", "grpc"), transfer_deadline_s=3600.0)


@dataclass(frozen=True)
class Choice:
    """What a worker does that computes so fast.

    Attributes:
        prefill: `MEASURED` on this machine, or `SIMULATED`: a rate that the prefix cache was told.
        recompute_s: the time to compute the prefix at that rate.
        loaded_tokens: what its prefix cache loaded, of the prefix.
    """

    prefill: str
    recompute_s: float
    loaded_tokens: int


@dataclass(frozen=True)
class Row:
    """A prefix over a link.

    Attributes:
        prefix_tokens: its length.
        gbps: bandwidth of the link in 10⁹ bits a second; None: no link in between.
        moved_bytes: payloads of the prefix.
        path: the data path that they came by.
        load_s: to find, fetch, verify and adopt them; the median.
        choice: of a worker.
    """

    prefix_tokens: int
    gbps: float | None
    moved_bytes: int
    path: str
    load_s: float
    choice: Choice


class Found(NamedTuple):
    """What was measured."""

    rows: list[Row]
    first_tokens: list[FirstToken]


def run(
    model: PreTrainedModel,
    token_ids: torch.Tensor,
    plan: Plan,
    codec: str,
    folder: Path,
    progress: Progress,
    *,
    weights_digest: str | None = None,
) -> Found:
    """A row for each prefix, link and worker, and one of first tokens for each link.

    Args:
        model: a decoder with full attention, on the CPU.
        token_ids: [1, plan.tokens], at least.
        plan: what to measure.
        codec: of the payloads.
        folder: an empty folder for logs.
        progress: is told.
        weights_digest: of the model; None digests its folder.

    Raises:
        ConfigError: model, codec and plan do not fit; this system has no splice.
        ProcessFailed, Incomplete: a process or the store does not do its part.
    """
    if not hasattr(os, "splice"):
        raise ConfigError("bench ttft needs splice(2): Linux")
    tokens = token_ids[0, : plan.tokens].tolist()
    if len(tokens) < plan.tokens:
        raise ConfigError(
            f"{len(tokens)} tokens are too few for a prefix of {plan.longest} and a question of "
            f"{plan.question_tokens}"
        )
    bulk_port = free_port()
    flags = ["--bulk-listen", f"{_STORE_HOST}:{bulk_port}"]
    ram_bytes = SPARE_BYTES + values_bytes(model, plan.longest)
    with RamStore("the store", folder, ram_bytes, flags) as store:
        progress.begin("prefill", 1 + len(plan.prefix_tokens))
        published = publish(model, tokens, plan, codec, weights_digest, store.address, progress)
        found = Found([], [])
        progress.begin("loads", len(plan.gbps) * (len(plan.prefix_tokens) + 1))
        for gbps in plan.gbps:
            with (
                _linked(store.address, bulk_port, gbps, folder) as address,
                Client(address, config=_REMOTE) as client,
            ):
                for length in plan.prefix_tokens:
                    found.rows.extend(_measure(published, client, length, gbps, plan))
                    progress.step()
                found.first_tokens.append(
                    first_token(model, published, client, gbps, plan.question_tokens, plan.loads)
                )
                progress.step()
    return found


def _measure(
    published: Published, client: Client, length: int, gbps: float | None, plan: Plan
) -> list[Row]:
    seconds, moved = _load(published, client, length, plan.loads)
    workers = [(MEASURED, length / published.prefill_s[length])]
    workers += [(SIMULATED, rate) for rate in plan.prefill_rates]
    return [
        Row(
            prefix_tokens=length,
            gbps=gbps,
            moved_bytes=moved,
            path=str(client.path),
            load_s=seconds,
            choice=Choice(kind, length / rate, _chosen(published, client, length, rate)),
        )
        for kind, rate in workers
    ]


def _load(published: Published, client: Client, length: int, loads: int) -> tuple[float, int]:
    """Seconds until all of a prefix can be attended to, and bytes that were moved for it."""
    patient = PrefixCacheConfig(deadline_s=3600.0)
    seconds: list[float] = []
    moved = 0
    with _prefix_cache(published, client, patient) as prefixes:
        while len(seconds) <= loads and sum(seconds) < _ENOUGH_S:
            pages = PagedCache(
                published.shape,
                published.codec,
                published.profile,
                capacity_bytes=published.room_bytes,
                kv_dtype=published.kv_dtype,
            )
            began = time.perf_counter()
            loaded = prefixes.load(published.token_ids[: length + 1])
            for payload in loaded.payloads:
                pages.adopt(payload)
            seconds.append(time.perf_counter() - began)
            moved = loaded.report.fetched_bytes
            if loaded.num_tokens != length:
                raise Incomplete(
                    f"{loaded.num_tokens} of {length} tokens were loaded: "
                    f"{loaded.report.stopped_by}"
                )
    # the first one opens the connection and learns how fast it is
    return statistics.median(seconds[1:] or seconds), moved


def _chosen(published: Published, client: Client, length: int, tokens_per_s: float) -> int:
    """Tokens that a worker's prefix cache loads, with its own settings, when it knows how fast the
    worker computes and has seen the link."""
    with _prefix_cache(published, client, PrefixCacheConfig()) as prefixes:
        prefixes.observe_prefill(length, length / tokens_per_s)
        for _ in range(_EXPLORING_LOADS):
            prefixes.load(published.token_ids[: length + 1])
        return prefixes.load(published.token_ids[: length + 1]).num_tokens


def _prefix_cache(published: Published, client: Client, config: PrefixCacheConfig) -> PrefixCache:
    return PrefixCache(client, published.namespace, published.codec, published.shape, config=config)


@contextmanager
def _linked(store: str, bulk_port: int, gbps: float | None, folder: Path) -> Iterator[str]:
    """The address of the store behind a link; without a limit the store's own."""
    if gbps is None:
        yield store
        return
    port = store.rpartition(":")[2]
    command = [sys.executable, "-m", "packkv.bench.ttft.shaped_link", str(gbps * 1e9)]
    command += [_LINK_HOST, _STORE_HOST, port, str(bulk_port)]
    with Child(f"the link of {gbps:g} Gbit", command, folder) as link:
        link.hear(_START_S)
        yield f"{_LINK_HOST}:{port}"
