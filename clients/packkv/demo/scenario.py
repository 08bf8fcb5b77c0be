"""The demo itself: worker A reads a document and publishes it, worker B asks about it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from packkv.demo.document import Document, Prompts, prompts
from packkv.demo.messages import Answered, Compared, Ready
from packkv.demo.model import load_tokenizer, model_folder
from packkv.demo.outcome import Outcome
from packkv.demo.processes import StoreProcess, WorkerProcess
from packkv.errors import ConfigError

# Shows that a step is under way, and that it is done when the context ends.
Step = Callable[[str], AbstractContextManager[object]]
StartWorker = Callable[[str], WorkerProcess]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What to run: see the options of `packkv demo`."""

    document: Document
    model: Path | None
    codec: str
    prefix_tokens: int
    new_tokens: int
    store: str | None = None

    def run(self, folder: Path, step: Step) -> Outcome:
        """Start the processes, ask both questions, compare, and end the processes.

        Args:
            folder: an empty folder for the store's data and the logs.
            step: shows what is being done.

        Raises:
            ConfigError: the model, the text or their sizes do not fit.
            ProcessFailed: a process could not do its part; its log is quoted.
        """
        with step("Prepare the model, converted the first time, and the document"):
            model = model_folder(self.model)
            tokenizer = load_tokenizer(model)
            asked = prompts(tokenizer, self.document, self.prefix_tokens)
        with self._open_store(folder, step) as (address, index):
            start = partial(
                WorkerProcess,
                folder=folder,
                model=model,
                codec=self.codec,
                store=address,
                # what an earlier run left in a store must not warm worker A up
                tenant_salt=secrets.token_hex(8),
            )
            worker, cold = self._publish(start, asked, step)
            warm, exact = self._reuse(start, asked, step)
        answers = (cold.tokens, warm.tokens, exact.tokens)
        texts = [
            str(tokenizer.decode(tokens, skip_special_tokens=True)).strip() for tokens in answers
        ]
        return Outcome(
            model=model.name,
            document=self.document.name,
            codec=self.codec,
            index=index,
            questions=self.document.questions,
            prefix_tokens=asked.shared,
            worker=worker,
            cold=cold,
            warm=warm,
            exact=exact,
            texts=(texts[0], texts[1], texts[2]),
        )

    @contextmanager
    def _open_store(self, folder: Path, step: Step) -> Iterator[tuple[str, str]]:
        """Address and kind of index of the store in use."""
        if self.store is not None:
            yield self.store, f"of the store at {self.store}"
            return
        with step("Start a store"):
            store = StoreProcess(folder)
        with store:
            yield store.address, store.index

    def _publish(self, start: StartWorker, asked: Prompts, step: Step) -> tuple[Ready, Answered]:
        with start("worker A") as worker:
            with step("Start worker A: load the model, compile the codec the first time"):
                ready = worker.ready()
            self._check_length(asked, ready.positions)
            with step(f"Worker A reads {len(asked.first):,} tokens, answers, publishes, leaves"):
                return ready, worker.answer(asked.first, self.new_tokens, publish=True)

    def _reuse(self, start: StartWorker, asked: Prompts, step: Step) -> tuple[Answered, Compared]:
        with start("worker B") as worker:
            with step("Start worker B, whose cache is empty"):
                worker.ready()
            with step("Worker B is asked about the same document: fetches its prefix, answers"):
                answered = worker.answer(asked.second, self.new_tokens)
            with step("Worker B answers again without PackKV, to compare"):
                return answered, worker.compare(asked.second, self.new_tokens)

    def _check_length(self, asked: Prompts, positions: int) -> None:
        longest = max(len(asked.first), len(asked.second)) + self.new_tokens
        if longest > positions:
            raise ConfigError(
                f"prompt and answer have {longest:,} tokens, and the model knows {positions:,} "
                "positions: choose a smaller --prefix-tokens"
            )
