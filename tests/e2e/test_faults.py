"""The store dies or hangs while a worker needs it: the answer comes all the same, and is right."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from packkv.demo.document import Prompts, prompts, python_reference
from packkv.demo.messages import Answered, Compared
from packkv.demo.model import load_tokenizer
from packkv.demo.processes import WorkerProcess
from tests.clients.conftest import StoreProcess
from tests.e2e.faults.conftest import PATIENCE_S, until
from tests.store.redis_servers import free_port

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEADLINE_S = 1.0
TEXT = 5_000
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

    def answer_is_right(self, answer: Answered) -> None:
        """In time whatever the store did, and token for token that of the stock model."""
        assert answer.tokens == self.exact.tokens
        # the machine may be busy: the point is that nobody waits for a store that does not answer
        assert answer.ttft_s < DEADLINE_S + 30 * max(1.0, self.computed.ttft_s)


@dataclass
class Running:
    """Processes of all tests: each takes a text that neither worker has met before."""

    store: StoreProcess
    publisher: WorkerProcess
    cold: WorkerProcess
    tokenizer: PreTrainedTokenizerBase
    taken: int = 0

    def ask(self, tokens: int) -> Prompts:
        self.taken += 1
        document = python_reference()
        text = document.text[TEXT * self.taken : TEXT * (self.taken + 1)]
        return prompts(self.tokenizer, replace(document, text=text), tokens)

    def published(self) -> tuple[Prompts, Answered]:
        """Prompts of which the store has the first; one that was away is found again, in time."""
        ends_at = time.monotonic() + PATIENCE_S
        while True:
            asked = self.ask(256)
            computed = self.publisher.answer(asked.first, NEW_TOKENS, publish=True)
            if computed.published_blocks == len(asked.first) // 64:
                return asked, computed
            assert time.monotonic() < ends_at, computed

    def is_served(self) -> bool:
        """Whether the store answers the cold worker; of this text it has nothing."""
        return self.cold.answer(self.ask(128).first, 1).misses == {"absent": 1}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("faults")
    with ExitStack() as processes:
        store = StoreProcess(folder / "store", ("--ram-bytes", "256MiB"))
        store.start(f"127.0.0.1:{free_port()}")
        processes.callback(store.kill)
        # raw is lossless: whatever is fetched or computed, the tokens must be the same
        publisher, cold = (
            processes.enter_context(
                WorkerProcess(name, folder, smollm2, "raw", store.target, deadline_s=DEADLINE_S)
            )
            for name in ("publisher", "cold worker")
        )
        publisher.ready()
        cold.ready()
        yield Running(store, publisher, cold, load_tokenizer(smollm2))


@pytest.fixture
def cluster(running: Running) -> Cluster:
    """It serves, whatever the last test did to the store."""
    assert running.store.process is not None
    if running.store.process.poll() is not None:
        running.store.start(running.store.target)
    asked, computed = running.published()
    exact = running.publisher.compare(asked.second, NEW_TOKENS)
    until(running.is_served, "the cold worker is served")
    return Cluster(running.store, running.cold, asked, computed, exact)


def test_a_store_that_hangs_costs_the_deadline_and_no_more(cluster: Cluster) -> None:
    cluster.store.pause()
    try:
        answer = cluster.cold.answer(cluster.asked.second, NEW_TOKENS)
    finally:
        cluster.store.resume()
    assert answer.matched_tokens == 0
    assert sum(answer.misses.values()) == 1
    cluster.answer_is_right(answer)


def test_a_store_that_is_gone_costs_next_to_nothing(cluster: Cluster) -> None:
    cluster.store.kill()
    answer = cluster.cold.answer(cluster.asked.second, NEW_TOKENS)
    assert answer.matched_tokens == 0
    # found out, unless the machine is too busy to do so within the deadline
    assert answer.misses in ({"unavailable": 1}, {"late": 1})
    cluster.answer_is_right(answer)


@pytest.mark.parametrize("delay_s", [0.002, 0.02])
def test_a_store_killed_under_a_request_changes_no_token(cluster: Cluster, delay_s: float) -> None:
    cluster.cold.send("answer", prompt=cluster.asked.second, new_tokens=NEW_TOKENS)
    time.sleep(delay_s)
    cluster.store.kill()
    cluster.answer_is_right(cluster.cold.answered(timeout_s=280))
