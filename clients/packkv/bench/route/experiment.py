"""The experiment: real workers with stores of their own, and the same trace by each policy."""

from __future__ import annotations

import json
import secrets
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import httpx2

from packkv.bench.route.plan import Plan
from packkv.bench.route.trace import Message, Trace
from packkv.demo.processes import Child, StoreProcess
from packkv.errors import PackKVError
from packkv.hashing import BLOCK_SIZE
from packkv.router.config import Policy

_START_S: Final = 300.0
_ANSWER_S: Final = 600.0
_COMMAND: Final = (sys.executable, "-c", "from packkv.cli import main; main()")
_CHAT: Final = "/v1/chat/completions"
_NAMED: Final = "/packkv/blocks/chat/completions"


class Unanswered(PackKVError):
    """A question was not answered: there is nothing to compare."""


class Progress(Protocol):
    """Is told what happens."""

    def begin(self, what: str, steps: int) -> None:
        """A part that takes some steps."""

    def step(self) -> None:
        """One of them is done."""


@dataclass(frozen=True)
class Asked:
    """One question and what came of it. Seconds; `at` on the monotonic clock."""

    at: float
    body: dict[str, Any]
    text: str
    worker: str
    prompt_tokens: int
    cached_tokens: int
    first_token_s: float


@dataclass(frozen=True)
class Row:
    """One policy.

    Attributes:
        requests: how many each worker was sent, in the order of the workers.
        prompt_tokens, cached_tokens: of all questions; cached were not computed.
        possible_tokens: would not have been computed by one worker that keeps everything.
    """

    policy: str
    requests: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    possible_tokens: int
    first_token_s: float
    first_token_p90_s: float
    wall_s: float


def run(
    plan: Plan, text: str, model: Path | None, codec: str, folder: Path, progress: Progress
) -> list[Row]:
    """Both policies, one after the other, on the same workers, each with a cache salt of its own.

    Raises:
        ConfigError: the text is too short.
        PackKVError: a process does not start, or a question is not answered.
    """
    with ExitStack() as stack:
        progress.begin("workers that start", plan.workers)
        stores = [
            stack.enter_context(StoreProcess(folder, name=f"store {number}"))
            for number in range(plan.workers)
        ]
        options = ["--model", str(model)] if model is not None else []
        workers = [
            stack.enter_context(
                _Served(
                    f"worker {number}",
                    folder,
                    "worker",
                    *("--store", store.address, "--codec", codec, "--grace-seconds", "1"),
                    *options,
                )
            )
            for number, store in enumerate(stores)
        ]
        pairs = []
        for worker, store in zip(workers, stores, strict=True):
            pairs.append(f"{worker.address()}={store.address}")
            worker.hear(_START_S)
            progress.step()
        return [
            measure(policy, plan, Trace(plan, text), pairs, folder, progress)
            for policy in (Policy.ROUND_ROBIN, Policy.PREFIX)
        ]


class _Served(Child):
    """A command of `packkv` that listens on a free port."""

    def __init__(self, name: str, folder: Path, *words: str) -> None:
        command = [*_COMMAND, *words, "--listen", "127.0.0.1:0"]
        super().__init__(name, command, folder)

    def address(self) -> str:
        return self.hear(_START_S).rpartition(" ")[2]


def measure(
    policy: Policy,
    plan: Plan,
    trace: Trace,
    pairs: Sequence[str],
    folder: Path,
    progress: Progress,
) -> Row:
    """The trace by one policy, before workers that are there: `pairs` are URL=STORE of each.

    Raises:
        PackKVError: the router does not start, or a question is not answered.
    """
    progress.begin(f"questions, {policy}", plan.conversations * plan.turns)
    salt = secrets.token_hex(16)
    options = [word for pair in pairs for word in ("--worker", pair)]
    with (
        _Served(f"router {policy}", folder, "route", "--policy", policy, *options) as router,
        httpx2.Client(timeout=_ANSWER_S, trust_env=False) as http,
        ThreadPoolExecutor(plan.at_once) as pool,
    ):
        url = router.address()
        model = http.get(f"{url}/v1/models").json()["data"][0]["id"]
        fields = {"model": model, "max_tokens": plan.answer_tokens, "cache_salt": salt}
        started = time.monotonic()
        asking = [
            pool.submit(_ask_all, http, url + _CHAT, trace, fields, progress)
            for _ in range(plan.at_once)
        ]
        asked = sorted((one for done in asking for one in done.result()), key=lambda one: one.at)
        wall_s = time.monotonic() - started
        possible = _possible(http, pairs[0].partition("=")[0], asked)
    seconds = sorted(one.first_token_s for one in asked)
    return Row(
        policy=policy.value,
        requests=tuple(
            sum(one.worker == str(number) for one in asked) for number in range(plan.workers)
        ),
        prompt_tokens=sum(one.prompt_tokens for one in asked),
        cached_tokens=sum(one.cached_tokens for one in asked),
        possible_tokens=possible,
        first_token_s=statistics.median(seconds),
        first_token_p90_s=seconds[(len(seconds) - 1) * 9 // 10],
        wall_s=wall_s,
    )


def _ask_all(
    http: httpx2.Client, url: str, trace: Trace, fields: dict[str, Any], progress: Progress
) -> list[Asked]:
    """Asks whoever is next, until nobody is."""
    found = []
    while (conversation := trace.next()) is not None:
        asked = _ask(http, url, {**fields, "messages": conversation.ask()})
        conversation.hear(asked.text)
        trace.give_back(conversation)
        found.append(asked)
        progress.step()
    return found


def _ask(http: httpx2.Client, url: str, body: dict[str, Any]) -> Asked:
    question = {
        **body,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.monotonic()
    first_s, text, usage = 0.0, "", None
    with http.stream("POST", url, json=question) as reply:
        if reply.status_code != 200:
            raise Unanswered(f"{url}: {reply.status_code}: {reply.read()[:500]!r}")
        for line in reply.iter_lines():
            first_s = first_s or time.monotonic() - started
            message = line.removeprefix("data: ")
            if not message or message == "[DONE]":
                continue
            event = json.loads(message)
            text += "".join(one["delta"].get("content", "") for one in event.get("choices", ()))
            usage = event.get("usage") or usage
        worker = reply.headers["x-packkv-worker"]
    if usage is None:
        raise Unanswered(f"{url}: the answer ended without its usage: {text[-200:]!r}")
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return Asked(started, body, text, worker, usage["prompt_tokens"], cached, first_s)


def _possible(http: httpx2.Client, worker: str, asked: Sequence[Asked]) -> int:
    """Tokens of prompts, in whole blocks from the front, that came up before: asked or answered."""

    def names_of(messages: Sequence[Message]) -> list[str]:
        reply = http.post(worker + _NAMED, json={**asked[0].body, "messages": messages})
        names: list[str] = reply.raise_for_status().json()["blocks"]
        return names

    seen: set[str] = set()
    blocks = 0
    for one in asked:
        messages = one.body["messages"]
        names = names_of(messages)
        blocks += next((at for at, name in enumerate(names) if name not in seen), len(names))
        seen.update(names, names_of([*messages, {"role": "assistant", "content": one.text}]))
    return blocks * BLOCK_SIZE
