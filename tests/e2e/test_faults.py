"""The store dies or hangs while a worker needs it: the answer comes all the same, and is right."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from packkv.demo.document import Prompts, prompts, python_reference
from packkv.demo.messages import Answered, Compared
from packkv.demo.model import load_tokenizer
from packkv.demo.processes import StoreProcess, WorkerProcess

DEADLINE_S = 1.0
NEW_TOKENS = 8

pytestmark = pytest.mark.timeout(600)


@dataclass
class Cluster:
    """A store that has a prefix, and a worker that has never seen it."""

    store: StoreProcess
    cold: WorkerProcess
    asked: Prompts
    computed: Answered
    exact: Compared

    def signal_store(self, number: int) -> None:
        os.kill(self.store.process.pid, number)

    def answer_is_right(self, answer: Answered) -> None:
        """In time whatever the store did, and token for token that of the stock model."""
        assert answer.tokens == self.exact.tokens
        # the machine may be busy: the point is that nobody waits for a store that does not answer
        assert answer.ttft_s < DEADLINE_S + 10 * max(1.0, self.computed.ttft_s)


@pytest.fixture(scope="module")
def asked(smollm2: Path) -> Prompts:
    return prompts(load_tokenizer(smollm2), python_reference(), 256)


@pytest.fixture
def cluster(tmp_path: Path, smollm2: Path, asked: Prompts) -> Iterator[Cluster]:
    with ExitStack() as processes:
        store = processes.enter_context(StoreProcess(tmp_path, ram_bytes="256MiB"))
        # raw is lossless: whatever is fetched or computed, the tokens must be the same
        publisher, cold = (
            processes.enter_context(
                WorkerProcess(name, tmp_path, smollm2, "raw", store.address, deadline_s=DEADLINE_S)
            )
            for name in ("publisher", "cold worker")
        )
        publisher.ready()
        cold.ready()
        computed = publisher.answer(asked.first, NEW_TOKENS, publish=True)
        assert computed.published_blocks == len(asked.first) // 64
        exact = publisher.compare(asked.second, NEW_TOKENS)
        publisher.stop()
        yield Cluster(store, cold, asked, computed, exact)


def test_a_store_that_hangs_costs_the_deadline_and_no_more(cluster: Cluster) -> None:
    cluster.signal_store(signal.SIGSTOP)
    try:
        answer = cluster.cold.answer(cluster.asked.second, NEW_TOKENS)
    finally:
        cluster.signal_store(signal.SIGCONT)
    assert answer.matched_tokens == 0
    assert sum(answer.misses.values()) == 1
    cluster.answer_is_right(answer)


def test_a_store_that_is_gone_costs_next_to_nothing(cluster: Cluster) -> None:
    cluster.signal_store(signal.SIGKILL)
    answer = cluster.cold.answer(cluster.asked.second, NEW_TOKENS)
    assert answer.matched_tokens == 0
    assert answer.misses == {"unavailable": 1}
    cluster.answer_is_right(answer)


@pytest.mark.parametrize("delay_s", [0.002, 0.02])
def test_a_store_killed_under_a_request_changes_no_token(cluster: Cluster, delay_s: float) -> None:
    cluster.cold.send("answer", prompt=cluster.asked.second, new_tokens=NEW_TOKENS)
    time.sleep(delay_s)
    cluster.signal_store(signal.SIGKILL)
    cluster.answer_is_right(cluster.cold.answered(timeout_s=120))
