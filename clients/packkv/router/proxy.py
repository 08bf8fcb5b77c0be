"""The API of a router: requests go to a worker, its answers come back as they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from http import HTTPStatus
from urllib.parse import quote

import anyio
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from packkv.router.choice import Choice
from packkv.router.config import RouterConfig
from packkv.router.metrics import RouterMetrics
from packkv.router.upstream import Question, Reply, Upstream, WorkerGone
from packkv.router.worker import Worker
from packkv.serving.errors import ApiError, BadRequest, OutOfTime, Unready
from packkv.serving.guard import Guard

# Headers of a request that workers understand.
_PASSED_ON = ("authorization", "content-type", "accept", "traceparent", "tracestate")
# A worker says so when another one may answer.
_ELSEWHERE = frozenset((HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS))
# The longest answer that is no stream.
_MAX_ANSWER_BYTES = 64 << 20
# nginx's status for a client that has gone; nobody reads it.
_GONE = 499


class Proxy:
    """Answers by asking one worker, or another while nothing has been sent yet."""

    def __init__(
        self,
        config: RouterConfig,
        workers: Sequence[Worker],
        upstream: Upstream,
        metrics: RouterMetrics,
    ) -> None:
        self._config = config
        self._workers = workers
        self._upstream = upstream
        self._metrics = metrics
        self._choice = Choice(config.policy)
        self._accepted = 0
        self.is_leaving = False

    @property
    def under_way(self) -> int:
        """Requests that have been accepted, and streams that have not ended."""
        return self._accepted + sum(worker.under_way for worker in self._workers)

    def app(self) -> Starlette:
        """The ASGI application.

        Raises:
            ConfigError: the file of API keys cannot be used.
        """
        completions = ("/v1/completions", "/v1/chat/completions")
        guard = Middleware(
            Guard,
            keys=self._config.api_keys(),
            max_body_bytes=self._config.max_body_bytes,
            on_refusal=self._metrics.requests.labels("refused").inc,
        )
        return Starlette(
            routes=[
                *(Route(path, self._complete, methods=["POST"]) for path in completions),
                Route("/v1/models", self._pass_on),
                Route("/v1/models/{name:path}", self._pass_on),
                Route("/health", self._health),
                Route("/ready", self._ready),
                Route("/metrics", self._prometheus),
            ],
            middleware=[guard],
            exception_handlers={ApiError: _refused, HTTPException: _failed},
        )

    async def _complete(self, request: Request) -> Response:
        if self.is_leaving:
            self._metrics.requests.labels("refused").inc()
            raise Unready("this router is leaving: ask another one", code="draining")
        question = await _question(request)
        self._accepted += 1
        try:
            async with asyncio.timeout(self._config.request_s):
                reply = await _unless_gone(request, self._answer(question))
        except TimeoutError:
            self._metrics.requests.labels("broken").inc()
            seconds = f"{self._config.request_s:g} s"
            raise OutOfTime(f"no answer within {seconds}", code="request_timeout") from None
        finally:
            self._accepted -= 1
        if reply.status_code == _GONE:
            self._metrics.requests.labels("cancelled").inc()
        return reply

    async def _pass_on(self, request: Request) -> Response:
        return await self._send(await _question(request), [])

    async def _answer(self, question: Question) -> Response:
        names = await self._names(question) if self._choice.wants_names else []
        return await self._send(question, names)

    async def _names(self, question: Question) -> list[int]:
        # any worker knows: the one that has least to do
        ready = [one for one in self._workers if one.is_up]
        if not ready:
            return []
        worker = min(ready, key=lambda one: (one.load, one.turn))
        names = await self._upstream.block_names(worker, question, self._config.ask_s)
        if names is None:
            self._metrics.unnamed.inc()
        return names or []

    async def _send(self, question: Question, names: Sequence[int]) -> Response:
        tried: list[Worker] = []
        last: Response | None = None
        while (worker := self._choice.of(self._workers, names, tried)) is not None:
            if tried:
                self._metrics.retries.inc()
            tried.append(worker)
            held = worker.held(names)
            try:
                reply = await self._begin(worker, question, names)
            except WorkerGone:
                worker.lose()
                continue
            if reply.status_code not in _ELSEWHERE:
                self._metrics.blocks.inc(len(names))
                self._metrics.held.inc(held)
                return reply
            last = reply
        if last is not None:
            self._metrics.requests.labels("refused").inc()
            return last
        self._metrics.requests.labels("no_worker").inc()
        raise Unready("no worker is there to answer: try again later", code="no_worker")

    async def _begin(self, worker: Worker, question: Question, names: Sequence[int]) -> Response:
        """An answer of which nothing has been sent yet: all of it, or the beginning of a stream.

        Raises:
            WorkerGone: it broke off before.
        """
        self._metrics.sent.labels(worker.url).inc()
        with ExitStack() as stack:
            burden = stack.enter_context(worker.carrying(names))
            reply = await self._upstream.send(worker, question)
            headers = {**reply.headers, "x-packkv-worker": str(worker.number)}
            try:
                if not reply.is_stream:
                    body = await _whole(reply)
                    await reply.close()
                    self._count(reply.status)
                    return Response(body, reply.status, headers)
                pieces = reply.pieces()
                first = await anext(pieces, b"")
                burden.computed()
            except BaseException:
                await _close(reply)
                raise
            carried = stack.pop_all()
        return _Relay(first, pieces, reply, carried, self._metrics, headers)

    def _count(self, status: int) -> None:
        if status not in _ELSEWHERE:
            self._metrics.requests.labels("answered").inc()

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"alive": True})

    async def _ready(self, request: Request) -> Response:
        if self.is_leaving or not any(one.is_up for one in self._workers):
            raise Unready("no worker is ready, or the router is leaving")
        return JSONResponse({"ready": True})

    async def _prometheus(self, request: Request) -> Response:
        text = generate_latest(self._metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)


class _Relay(StreamingResponse):
    """A worker's stream on its way to the client; whatever ends it, the worker is let go."""

    def __init__(
        self,
        first: bytes,
        pieces: AsyncIterator[bytes],
        reply: Reply,
        carried: ExitStack,
        metrics: RouterMetrics,
        headers: Mapping[str, str],
    ) -> None:
        self._reply = reply
        self._carried = carried
        self._metrics = metrics
        self._outcome = "cancelled"
        super().__init__(self._all(first, pieces), reply.status, dict(headers))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._carried.close()
            self._metrics.requests.labels(self._outcome).inc()
            await _close(self._reply)

    async def _all(self, first: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            yield first
            async for piece in pieces:
                yield piece
            self._outcome = "answered"
        except WorkerGone as error:
            self._outcome = "broken"
            # the status is long sent: clients take an error out of the stream as well
            body = ApiError(f"the worker was lost while it answered: {error}").body()
            yield f"\n\ndata: {json.dumps(body)}\n\ndata: [DONE]\n\n".encode()


async def _question(request: Request) -> Question:
    headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
    path = quote(request.scope["path"])
    return Question(request.method, path, headers, await request.body())


async def _whole(reply: Reply) -> bytes:
    body = bytearray()
    async for piece in reply.pieces():
        body += piece
        if len(body) > _MAX_ANSWER_BYTES:
            raise ApiError(f"a worker's answer has more than {_MAX_ANSWER_BYTES} bytes")
    return bytes(body)


async def _unless_gone(request: Request, work: Coroutine[None, None, Response]) -> Response:
    """What the work comes to; it is cancelled when the client goes away before."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=_GONE)
    finally:
        watching.cancel()
        working.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(request: Request) -> None:
    # the body has been read: the next message is that the client has gone
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _close(reply: Reply) -> None:
    # also of a request that is being cancelled: the worker must learn of it
    with anyio.CancelScope(shield=True):
        await reply.close()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers())


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{error.detail}: {request.method} {request.url.path}"
    return JSONResponse(BadRequest(text).body(), error.status_code, error.headers)
