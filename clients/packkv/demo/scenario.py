"""The demo itself: worker A reads a document and publishes it, worker B asks about it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from packkv.demo.document import Document, Prompts, prompts
from packkv.demo.messages import Answered, Compared, Ready
from packkv.demo.model import load_tokenizer, model_folder
from packkv.demo.outcome import Outcome
from packkv.demo.processes import StoreProcess, WorkerProcess
from packkv.demo.redis_process import start_redis
from packkv.errors import ConfigError

# Shows that a step is under way, and that it is done when the context ends.
Step = Callable[[str], AbstractContextManager[object]]
StartWorker = Callable[[str, str], WorkerProcess]

INDEXES = ("embedded", "redis")
MAX_NODES = 8


@dataclass(frozen=True, slots=True)
class Nodes:
    """The store in use. Worker A speaks to the first address, worker B to the last."""

    addresses: tuple[str, ...]
    index: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """What to run: see the options of `packkv demo`.

    Raises:
        ConfigError: the options do not go together.
    """

    document: Document
    model: Path | None
    codec: str
    prefix_tokens: int
    new_tokens: int
    store: str | None = None
    nodes: int = 1
    index: str = "embedded"

    def __post_init__(self) -> None:
        if self.index not in INDEXES:
            raise ConfigError(f"--index is {self.index!r}; there are: {', '.join(INDEXES)}")
        if not 1 <= self.nodes <= MAX_NODES:
            raise ConfigError(f"--nodes is {self.nodes}; it can be 1 to {MAX_NODES}")
        if self.nodes > 1 and self.index == "embedded":
            raise ConfigError(f"{self.nodes} nodes find each other through Redis: --index redis")
        if self.store is not None and (self.nodes, self.index) != (1, "embedded"):
            raise ConfigError("--store is a store that runs: --nodes and --index start one")

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
        with self._open_store(folder, step) as nodes:
            # what an earlier run left in a store must not warm worker A up
            salt = secrets.token_hex(8)

            def start(name: str, address: str) -> WorkerProcess:
                return WorkerProcess(name, folder, model, self.codec, address, tenant_salt=salt)

            worker, cold = self._publish(start, nodes, asked, step)
            warm, exact = self._reuse(start, nodes, asked, step)
        answers = (cold.tokens, warm.tokens, exact.tokens)
        texts = [
            str(tokenizer.decode(tokens, skip_special_tokens=True)).strip() for tokens in answers
        ]
        return Outcome(
            model=model.name,
            document=self.document.name,
            codec=self.codec,
            index=nodes.index,
            nodes=len(nodes.addresses),
            questions=self.document.questions,
            prefix_tokens=asked.shared,
            worker=worker,
            cold=cold,
            warm=warm,
            exact=exact,
            texts=(texts[0], texts[1], texts[2]),
        )

    @contextmanager
    def _open_store(self, folder: Path, step: Step) -> Iterator[Nodes]:
        if self.store is not None:
            yield Nodes((self.store,), f"of the store at {self.store}")
            return
        with ExitStack() as processes:
            url = self.index
            if self.index == "redis":
                with step("Start Redis, where nodes find each other"):
                    url = processes.enter_context(start_redis(folder)).url
            numbered = [f"node {number}" for number in range(1, self.nodes + 1)]
            addresses = []
            for name in numbered if self.nodes > 1 else ["the store"]:
                with step(f"Start {name}"):
                    node = StoreProcess(folder, index=url, name=name)
                addresses.append(processes.enter_context(node).address)
            yield Nodes(tuple(addresses), self.index)

    def _publish(
        self, start: StartWorker, nodes: Nodes, asked: Prompts, step: Step
    ) -> tuple[Ready, Answered]:
        with start("worker A", nodes.addresses[0]) as worker:
            with step("Start worker A: load the model, compile the codec the first time"):
                ready = worker.ready()
            self._check_length(asked, ready.positions)
            with step(f"Worker A reads {len(asked.first):,} tokens, answers, publishes, leaves"):
                return ready, worker.answer(asked.first, self.new_tokens, publish=True)

    def _reuse(
        self, start: StartWorker, nodes: Nodes, asked: Prompts, step: Step
    ) -> tuple[Answered, Compared]:
        with start("worker B", nodes.addresses[-1]) as worker:
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
