"""Generation: one task on its way, from the queue to its last token."""

from __future__ import annotations

import time
from typing import Literal

import torch

from packkv.worker.engine.task import Emit, Ended, Event, Piece, Task
from packkv.worker.metrics import WorkerMetrics
from packkv.worker.model import OpenModel, Sequence
from packkv.worker.sampling import Choice, Sampler
from packkv.worker.text import Detokenizer, StopStrings


class Generation:
    """A task, who wants to know of it, and what has become of it so far.

    Attributes:
        task: what is wanted.
        deadline: on the monotonic clock.
        cancelled: set by `Engine.cancel` on any thread.
        sequence: once the prompt is being computed.
        last_token: chosen, and not yet computed.
    """

    def __init__(self, task: Task, emit: Emit, model: OpenModel, request_s: float) -> None:
        self.task = task
        self.emit = emit
        self.arrived = time.monotonic()
        self.deadline = self.arrived + request_s
        self.cancelled = False
        self.sequence: Sequence | None = None
        self.last_token = -1
        self._model = model
        self._tokens = 0
        self._token_at = self.arrived
        self._sampler = Sampler(task.sampling)
        self._detokenizer = Detokenizer(model.language.decode, task.prompt)
        self._stops = StopStrings(task.stops)
        self._pending: list[Choice] = []

    def take(self, logits: torch.Tensor, metrics: WorkerMetrics) -> Ended | None:
        """Chooses the next token and hands out the text it completes; the end, when this is it.

        The caller emits the end: until then what the sequence holds is still needed.

        Args:
            logits: float32 [vocabulary], on the CPU.
            metrics: told about the token.

        Raises:
            ArithmeticError: no token can be chosen from these logits.
        """
        choice = self._sampler.choose(logits)
        self.last_token = choice.token_id
        self._tokens += 1
        self._note_time(metrics)
        if choice.token_id in self._model.end_tokens:
            return self._finish("stop")
        if choice.logprob is not None:
            self._pending.append(choice)
        self._hand_out(self._stops.feed(self._detokenizer.feed(choice.token_id)))
        if self._stops.stopped:
            return self._finish("stop")
        return self._finish("length") if self._tokens >= self.task.max_tokens else None

    def _finish(self, reason: Literal["stop", "length"]) -> Ended:
        text = self._stops.feed(self._detokenizer.finish())
        self._hand_out(text + self._stops.finish(), last=True)
        cached = 0 if self.sequence is None else self.sequence.cached_tokens
        return Ended("stop" if self._stops.stopped else reason, self._tokens, cached)

    def _hand_out(self, text: str, *, last: bool = False) -> None:
        if text or (last and self._pending):
            event: Event = Piece(text, tuple(self._pending))
            self._pending.clear()
            self.emit(event)

    def _note_time(self, metrics: WorkerMetrics) -> None:
        now = time.monotonic()
        if self._tokens == 1:
            metrics.first_token.observe(now - self.arrived)
        else:
            metrics.inter_token.observe(now - self._token_at)
        metrics.generated_tokens.inc()
        self._token_at = now
