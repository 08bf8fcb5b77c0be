"""Engine: the thread that owns the model, and the queue before it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from packkv.serving.errors import ApiError, OutOfTime, QueueFull, Unready
from packkv.worker.config import WorkerConfig
from packkv.worker.engine.generation import Generation
from packkv.worker.engine.task import Emit, Ended, Failed, Task
from packkv.worker.metrics import WorkerMetrics
from packkv.worker.model import OpenModel

_log = logging.getLogger("packkv.worker")

# How long the end waits for a turn of the engine that is under way.
_LAST_TURN_S = 5.0


class Engine:
    """Serves tasks. Its methods may be called from any thread.

    Args:
        config: settings.
        open_model: opens the model, on the engine's thread.
        metrics: told what happens.

    Attributes:
        opened: the model, as soon as it is open, or why it cannot be opened.
    """

    def __init__(
        self, config: WorkerConfig, open_model: Callable[[], OpenModel], metrics: WorkerMetrics
    ) -> None:
        self._config = config
        self._open_model = open_model
        self._metrics = metrics
        self.opened: Future[OpenModel] = Future()
        # guards the queue, the count and the flags; notified when any of them changes
        self._changed = threading.Condition()
        self._waiting: deque[Generation] = deque()
        self._under_way = 0
        self._draining = False
        self._hurried = False
        self._stopped = False
        # the engine's thread alone
        self._running: list[Generation] = []
        self._thread = threading.Thread(target=self._run, name="packkv-engine", daemon=True)
        metrics.waiting.set_function(lambda: len(self._waiting))
        metrics.running.set_function(lambda: len(self._running))

    def start(self) -> None:
        """Begin to open the model."""
        # whoever waits for it may give up waiting, and not the opening
        self.opened.set_running_or_notify_cancel()
        self._thread.start()

    def model(self) -> OpenModel:
        """The open model.

        Raises:
            Unready: it is not open yet, or the worker is leaving.
        """
        if self._draining or self._stopped:
            raise Unready("this worker is leaving: ask another one", code="draining")
        if not self.opened.done() or self.opened.exception() is not None:
            raise Unready("the model is not loaded yet", code="loading")
        return self.opened.result()

    @property
    def alive(self) -> bool:
        """Whether the engine's thread is there to do anything."""
        return self._thread.is_alive()

    def submit(self, task: Task, emit: Emit) -> Generation:
        """Queue a task; its events come through `emit`, the last is `Ended` or `Failed`.

        Raises:
            Unready: as `model`.
            QueueFull: as many wait as may wait.
        """
        generation = Generation(task, emit, self.model(), self._config.request_s)
        with self._changed:
            if self._draining or self._stopped:
                raise Unready("this worker is leaving: ask another one", code="draining")
            if self._under_way >= self._config.max_running + self._config.max_waiting:
                raise QueueFull(
                    f"{self._config.max_waiting} requests wait already, which is the most that "
                    "may: try again later",
                    code="queue_full",
                )
            self._waiting.append(generation)
            self._under_way += 1
            self._changed.notify_all()
        return generation

    def cancel(self, generation: Generation) -> None:
        """Nobody wants it any more: it ends before its next token."""
        with self._changed:
            generation.cancelled = True
            self._changed.notify_all()

    def drain(self, grace_s: float) -> None:
        """Take no more, finish what is under way, publish what is queued, and end.

        Returns within about `grace_s`, or when `hurry` is called; what is unfinished then fails.
        """
        ends_at = time.monotonic() + grace_s
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: not self._under_way or self._hurried, grace_s)
            self._stopped = True
            self._changed.notify_all()
        if self.opened.done() and self.opened.exception() is None:
            if self._hurried:
                ends_at = time.monotonic()
            # a step or a prefill cannot be interrupted; a process that ends takes it along
            self._thread.join(max(_LAST_TURN_S, ends_at - time.monotonic()))
            left_s = max(0.0, ends_at - time.monotonic())
            if not self._thread.is_alive():
                self.opened.result().decoder.close(left_s)

    def hurry(self) -> None:
        """Cut `drain` short."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            model = self._open_model()
        # whoever waits for the model raises it
        except BaseException as error:
            self.opened.set_exception(error)
            return
        self.opened.set_result(model)
        try:
            while self._turn(model):
                pass
        finally:
            with self._changed:
                self._stopped = True
                left = [*self._running, *self._waiting]
                self._waiting.clear()
            self._fail(model, left, Unready("this worker is leaving: ask another one"))

    def _turn(self, model: OpenModel) -> bool:
        """At most one prompt, and one token for everybody; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._running or self._waiting)
            if self._stopped:
                return False
            gone = [one for one in (*self._running, *self._waiting) if _is_over(one)]
            for one in gone:
                if one in self._waiting:
                    self._waiting.remove(one)
            has_room = len(self._running) - sum(one in self._running for one in gone)
            fresh = None
            if self._waiting and has_room < self._config.max_running:
                fresh = self._waiting.popleft()
        for one in gone:
            self._fail(model, [one], _why_over(one, self._config.request_s))
        if fresh is not None:
            self._begin(model, fresh)
        if self._running:
            self._step(model)
        return True

    def _begin(self, model: OpenModel, generation: Generation) -> None:
        task = generation.task
        self._metrics.queued.observe(time.monotonic() - generation.arrived)
        self._running.append(generation)
        try:
            sequence = model.decoder.begin(task.prompt, task.cache_salt)
            generation.sequence = sequence
            self._metrics.prompt_tokens.inc(len(task.prompt))
            logits = model.decoder.prefill(sequence)
            self._metrics.cached_tokens.inc(sequence.cached_tokens)
            ended = generation.take(logits, self._metrics)
        # the boundary of one request: whatever happens, the others go on
        except Exception as error:
            self._fail(model, [generation], _broken(error))
            return
        if ended is not None:
            self._end(model, generation, ended)
        else:
            # as early as possible: the same prefix may be next in the queue
            self._share(model, generation)

    def _step(self, model: OpenModel) -> None:
        running = list(self._running)
        try:
            sequences = [one.sequence for one in running if one.sequence is not None]
            logits = model.decoder.step(sequences, [one.last_token for one in running])
        # all of them took part, and none can go on from where it was
        except Exception as error:
            self._fail(model, running, _broken(error))
            return
        for generation, row in zip(running, logits, strict=True):
            try:
                ended = generation.take(row, self._metrics)
            except Exception as error:
                self._fail(model, [generation], _broken(error))
                continue
            if ended is not None:
                self._end(model, generation, ended)

    def _end(self, model: OpenModel, generation: Generation, ended: Ended) -> None:
        generation.emit(ended)
        self._share(model, generation)
        self._metrics.requests.labels("ok").inc()
        self._forget(model, generation)

    def _fail(self, model: OpenModel, generations: list[Generation], error: ApiError) -> None:
        for generation in generations:
            generation.emit(Failed(error))
            self._metrics.requests.labels(_outcome(error)).inc()
            self._forget(model, generation)

    def _share(self, model: OpenModel, generation: Generation) -> None:
        if generation.sequence is None:
            return
        try:
            model.decoder.share(generation.sequence)
        # the answer is right without it
        except Exception:
            _log.exception("a sequence could not be shared")

    def _forget(self, model: OpenModel, generation: Generation) -> None:
        if generation in self._running:
            self._running.remove(generation)
        if generation.sequence is not None:
            model.decoder.end(generation.sequence)
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()


class Cancelled(ApiError):
    """Whoever asked has gone."""


def _is_over(generation: Generation) -> bool:
    return generation.cancelled or time.monotonic() > generation.deadline


def _why_over(generation: Generation, request_s: float) -> ApiError:
    if generation.cancelled:
        return Cancelled("the client has gone")
    return OutOfTime(f"the answer was not complete after {request_s:g} s", code="request_timeout")


def _outcome(error: ApiError) -> str:
    reasons = ((Cancelled, "cancelled"), (OutOfTime, "late"), (Unready, "draining"))
    return next((name for kind, name in reasons if isinstance(error, kind)), "failed")


def _broken(error: Exception) -> ApiError:
    _log.error("a generation failed", exc_info=error)
    return ApiError(f"the worker could not go on: {type(error).__name__}: {error!s:.300}")
