"""Payloads whose sections are real, and clients that wait where a test wants them to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from packkv.client import Client, Fetched
from packkv_kernels.config import CacheShape
from packkv_kernels.format import write_payload
from packkv_kernels.format.payload import read_payload
from packkv_kernels.format.raw import compress_values
from tests.clients.conftest import Worker
from tests.clients.conftest import worker as small_worker

__all__ = ["small_worker"]

WAIT_S = 60.0


def until(holds: Callable[[], bool]) -> None:
    """Waits for what a thread that nobody waits for does last."""
    ends_at = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < ends_at
        threading.Event().wait(0.005)


def until_released(client: Client) -> None:
    """Waits until the store has let go of everything, as it should when loads have ended."""
    until(lambda: client.stats().leases == 0)


class RealWorker(Worker):
    """One whose sections can be read, and do not get smaller: values of random bits."""

    def payload(self, token_ids: list[int], index: int) -> bytes:
        return self._payload(token_ids, index, seed=0)

    def otherwise(self, token_ids: list[int], index: int) -> bytes:
        """Another sound payload of the same block."""
        return self._payload(token_ids, index, seed=1)

    def _payload(self, token_ids: list[int], index: int, seed: int) -> bytes:
        header = read_payload(super().payload(token_ids, index)).header
        values = np.random.default_rng([seed, index, *token_ids[:1]])
        count = 2 * 64 * self.shape.head_dim
        # no bits of infinity
        rows = values.integers(0, 1 << 14, (header.section_count, count), np.uint16)
        return bytes(write_payload(header, [compress_values(row.tobytes(), 2) for row in rows]))


@pytest.fixture
def real_worker(small_worker: Worker) -> RealWorker:
    """Six layers of about 8 KB a block."""
    shape = CacheShape(layers=6, heads=2, head_dim=16)
    # of its own: the store is shared with tests whose blocks have another shape
    namespace = small_worker.having(model="test/real").namespace
    return RealWorker(namespace, small_worker.codec, shape)


class GatedClient(Client):
    """A client whose Gets wait for `gate`, and are counted."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.gate: Callable[[], object] = lambda: None
        self.gets: list[int] = []
        self._counting = threading.Lock()

    def get(self, chain_hashes: Any, **options: Any) -> list[Fetched]:
        with self._counting:
            self.gets.append(len(chain_hashes))
        self.gate()
        return super().get(chain_hashes, **options)


@pytest.fixture
def other_prompts() -> Callable[[list[int], int], list[int]]:
    """A prompt that begins with some tokens of another, and then differs."""

    def make(token_ids: list[int], shared: int) -> list[int]:
        return [*token_ids[:shared], *(9_000 + token for token in token_ids[shared:])]

    return make
