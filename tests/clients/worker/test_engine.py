"""The engine, in this process: a model that breaks, an end that does not wait for ever."""

from __future__ import annotations

import queue
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from packkv.errors import ConfigError
from packkv.identity import PROFILE_FILE
from packkv.serving.errors import ApiError, Unready
from packkv.worker.config import WorkerConfig
from packkv.worker.engine import Ended, Engine, Event, Failed, Piece, Task
from packkv.worker.metrics import WorkerMetrics
from packkv.worker.model import OpenModel, Sequence, open_model
from packkv.worker.model.plain import PlainDecoder
from packkv.worker.sampling import Sampling

BREAKS_AT_ONCE, BREAKS_LATER = 7, 8
WAIT_S = 60.0


class BreakingDecoder(PlainDecoder):
    """Runs the model, and breaks for prompts that begin with a certain token."""

    ended = 0

    def prefill(self, sequence: Sequence) -> torch.Tensor:
        if sequence.prompt[0] == BREAKS_AT_ONCE:
            raise RuntimeError("out of memory")
        return super().prefill(sequence)

    def step(self, sequences: list[Sequence], token_ids: list[int]) -> torch.Tensor:
        logits = super().step(sequences, token_ids)
        for row, sequence in enumerate(sequences):
            if sequence.prompt[0] == BREAKS_LATER:
                logits[row] = float("nan")
        return logits

    def end(self, sequence: Sequence) -> None:
        self.ended += 1
        super().end(sequence)


@pytest.fixture(scope="module")
def opened(tiny_model: Path) -> OpenModel:
    config = WorkerConfig(model=tiny_model, codec="none")
    model = open_model(config)
    assert isinstance(model.decoder, PlainDecoder)
    return replace(model, decoder=BreakingDecoder(model.decoder._model))


@pytest.fixture
def engine(opened: OpenModel) -> Iterator[Engine]:
    engine = Engine(WorkerConfig(codec="none"), lambda: opened, WorkerMetrics())
    engine.start()
    engine.opened.result(WAIT_S)
    yield engine
    engine.hurry()
    engine.drain(WAIT_S)


class Asked:
    """Collects the events of one task."""

    def __init__(self, engine: Engine, *prompt: int, max_tokens: int = 5) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        task = Task(list(prompt), max_tokens, Sampling(temperature=0))
        self.generation = engine.submit(task, self.events.put)

    def last(self) -> Event:
        while isinstance(event := self.events.get(timeout=WAIT_S), Piece):
            pass
        return event


def test_one_request_that_breaks_the_model_fails_alone(engine: Engine, opened: OpenModel) -> None:
    assert isinstance(opened.decoder, BreakingDecoder)
    before = opened.decoder.ended
    asked = [Asked(engine, first, 1, 2) for first in (1, BREAKS_AT_ONCE, BREAKS_LATER, 2)]
    good, at_once, later, also_good = [one.last() for one in asked]
    assert isinstance(good, Ended)
    assert isinstance(also_good, Ended)
    assert isinstance(at_once, Failed)
    assert "out of memory" in str(at_once.error)
    assert at_once.error.status == 500
    assert isinstance(later, Failed)
    assert "NaN" in str(later.error)
    engine.drain(WAIT_S)
    # what they held is given up, whatever became of them
    assert opened.decoder.ended - before == 4


def test_a_codec_that_needs_a_profile_makes_one_from_the_first_long_prompt(
    tiny_model: Path,
) -> None:
    config = WorkerConfig(model=tiny_model, codec="hybrid")
    engine = Engine(config, lambda: open_model(config), WorkerMetrics())
    engine.start()
    engine.opened.result(WAIT_S)
    prompt = torch.randint(0, 256, (600,), generator=torch.Generator().manual_seed(0)).tolist()
    asked = [Asked(engine, *prompt[:100]), *(Asked(engine, *prompt) for _ in range(2))]
    cached = [event.cached_tokens for one in asked if isinstance(event := one.last(), Ended)]
    engine.drain(WAIT_S)
    # nothing can be packed before there is a profile; full blocks of the long prompt are found
    assert cached == [0, 0, 576]


def test_the_end_waits_for_answers_no_longer_than_its_grace(engine: Engine) -> None:
    asked = [Asked(engine, first, max_tokens=10_000) for first in (1, 2)]
    assert isinstance(asked[0].events.get(timeout=WAIT_S), Piece)
    engine.drain(0.1)
    for one in asked:
        event = one.last()
        assert isinstance(event, Failed)
        assert isinstance(event.error, Unready)
    with pytest.raises(Unready, match="leaving"):
        Asked(engine, 1)
    assert not engine.alive


def test_a_profile_that_cannot_be_read_is_named(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / PROFILE_FILE).write_bytes(b"no profile")
    with pytest.raises(ConfigError, match=r"cannot pack .*not a profile"):
        open_model(WorkerConfig(model=folder))


def test_a_model_that_cannot_be_opened_is_told_to_who_waits() -> None:
    def fails() -> OpenModel:
        raise ApiError("no such model")

    engine = Engine(WorkerConfig(codec="none"), fails, WorkerMetrics())
    with pytest.raises(Unready, match="not loaded yet"):
        engine.model()
    engine.start()
    with pytest.raises(ApiError, match="no such model"):
        engine.opened.result(WAIT_S)
    with pytest.raises(Unready):
        engine.model()
    engine.drain(WAIT_S)
