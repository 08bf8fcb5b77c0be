"""The routes of a worker, and how errors are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from packkv.serving.errors import ApiError, BadRequest, NotFound
from packkv.serving.guard import Guard
from packkv.worker.config import WorkerConfig
from packkv.worker.engine import Ended, Engine, Event, Piece, Task
from packkv.worker.http.asking import Asking
from packkv.worker.http.questions import chat_task, check_model, text_task
from packkv.worker.http.replies import ChatReply, Reply, TextReply, model_card, named_blocks
from packkv.worker.http.requests import Ask, ChatAsk, TextAsk
from packkv.worker.metrics import WorkerMetrics
from packkv.worker.model import OpenModel

AskT = TypeVar("AskT", bound=Ask)

_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def make_app(config: WorkerConfig, engine: Engine, metrics: WorkerMetrics) -> FastAPI:
    """The ASGI application of a worker.

    Raises:
        ConfigError: the file of API keys cannot be used.
    """
    # the pages of /docs load scripts from elsewhere: a worker offers its schema alone
    app = FastAPI(title="PackKV worker", docs_url=None, redoc_url=None)
    keys = config.api_keys()
    app.add_middleware(
        Guard,
        keys=keys,
        max_body_bytes=config.max_body_bytes,
        on_refusal=metrics.requests.labels("refused").inc,
    )
    _add_errors(app, metrics)
    _add_operations(app, engine, metrics)
    _add_models(app, engine)
    _add_completions(app, engine)
    _add_blocks(app, engine)
    return app


def _add_completions(app: FastAPI, engine: Engine) -> None:
    @app.post("/v1/completions", response_model=None)
    async def completions(ask: TextAsk, request: Request) -> Response:
        model = engine.model()
        check_model(ask.model, model)
        # a long text takes the tokenizer a while; the loop has others to serve
        task = await asyncio.to_thread(text_task, ask, model)
        with_logprobs = task.sampling.top_logprobs is not None
        reply = TextReply(model, len(task.prompt), with_logprobs, ask.wants_usage)
        return await _answer(engine, ask, task, request, reply)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(ask: ChatAsk, request: Request) -> Response:
        model = engine.model()
        check_model(ask.model, model)
        task = await asyncio.to_thread(chat_task, ask, model)
        with_logprobs = task.sampling.top_logprobs is not None
        reply = ChatReply(model, len(task.prompt), with_logprobs, ask.wants_usage)
        return await _answer(engine, ask, task, request, reply)


def _add_blocks(app: FastAPI, engine: Engine) -> None:
    """What a request's blocks are called: for routers, and for `packkv match` and `doctor`."""

    @app.get("/packkv/namespace", response_model=None)
    async def namespace() -> Response:
        found = engine.model().decoder.namespace()
        if found is None:
            raise NotFound("this worker shares no blocks", code="no_namespace")
        return Response(found.canonical_json(), media_type="application/json")

    @app.post("/packkv/blocks/completions", response_model=None)
    async def of_completions(ask: TextAsk, request: Request) -> Response:
        request.state.is_taken = True
        return await _name_blocks(engine.model(), text_task, ask)

    @app.post("/packkv/blocks/chat/completions", response_model=None)
    async def of_chat_completions(ask: ChatAsk, request: Request) -> Response:
        request.state.is_taken = True
        return await _name_blocks(engine.model(), chat_task, ask)


async def _name_blocks(
    model: OpenModel, make_task: Callable[[AskT, OpenModel], Task], ask: AskT
) -> Response:
    check_model(ask.model, model)

    def named() -> Response:
        task = make_task(ask, model)
        names = model.decoder.block_names(task.prompt, task.cache_salt)
        return JSONResponse(named_blocks(len(task.prompt), names))

    # tokenising a long text takes a while, and so does hashing it
    return await asyncio.to_thread(named)


def _add_models(app: FastAPI, engine: Engine) -> None:
    @app.get("/v1/models", response_model=None)
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [model_card(engine.model())]})

    @app.get("/v1/models/{name:path}", response_model=None)
    async def one_model(name: str) -> Response:
        model = engine.model()
        check_model(name, model)
        return JSONResponse(model_card(model))


def _add_operations(app: FastAPI, engine: Engine, metrics: WorkerMetrics) -> None:
    @app.get("/health", response_model=None)
    async def health() -> Response:
        status = HTTPStatus.OK if engine.alive else HTTPStatus.INTERNAL_SERVER_ERROR
        return JSONResponse({"alive": engine.alive}, status)

    @app.get("/ready", response_model=None)
    async def ready() -> Response:
        # a store that is down is no reason: the worker computes
        engine.model()
        return JSONResponse({"ready": True})

    @app.get("/metrics", response_model=None)
    async def prometheus() -> Response:
        # off the loop: one of the values waits for a lock that a publishing thread may hold
        text = await asyncio.to_thread(generate_latest, metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI, metrics: WorkerMetrics) -> None:
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        # the engine counts what it has taken
        if request.method == "POST" and not getattr(request.state, "is_taken", False):
            metrics.requests.labels("refused").inc()
        return JSONResponse(error.body(), error.status, error.headers())

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return await refused(request, _first_fault(error))

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        text = f"{error.detail}: {request.method} {request.url.path}"
        body = BadRequest(text).body()
        return JSONResponse(body, error.status_code, error.headers)


def _first_fault(error: RequestValidationError) -> BadRequest:
    """The first thing that is wrong with a body, in one sentence."""
    fault = error.errors()[0]
    # a path through the body, without the names of the alternatives that were tried
    place = [part for part in fault["loc"][1:] if isinstance(part, int) or part.isidentifier()]
    kinds = {"str", "int", "function"}
    param = ".".join(str(part) for part in place if part not in kinds) or None
    param = fault.get("ctx", {}).get("param", param)
    if fault["type"] == "extra_forbidden":
        return BadRequest(f"this worker does not know the argument {param!r}", param=param)
    if fault["type"] == "json_invalid":
        return BadRequest(f"the body is no JSON: {fault['ctx']['error']}")
    return BadRequest(f"{param or 'the body'}: {fault['msg']}", param=param)


async def _answer(engine: Engine, ask: Ask, task: Task, request: Request, reply: Reply) -> Response:
    asking = Asking(engine, task, request)
    request.state.is_taken = True
    headers = {"x-request-id": reply.id}
    if ask.stream:
        try:
            # so that what fails before the first token has a status of its own
            first = await asking.next()
        except BaseException:
            asking.close()
            raise
        return StreamingResponse(
            _stream(asking, first, reply),
            media_type="text/event-stream",
            headers=headers | _STREAM_HEADERS,
        )
    pieces: list[Piece] = []
    try:
        async for event in asking.events():
            if isinstance(event, Piece):
                pieces.append(event)
            elif isinstance(event, Ended):
                return JSONResponse(reply.whole(pieces, event), headers=headers)
    finally:
        asking.close()
    raise AssertionError("events end with Ended or an error")


async def _stream(asking: Asking, first: Event, reply: Reply) -> AsyncIterator[str]:
    try:
        for message in reply.opening():
            yield _sse(message)
        event = first
        while isinstance(event, Piece):
            yield _sse(reply.piece(event))
            event = await asking.next()
        if isinstance(event, Ended):
            for message in reply.closing(event):
                yield _sse(message)
    except ApiError as error:
        # the status is long sent: clients take an error out of the stream as well
        yield _sse(error.body())
    finally:
        asking.close()
    yield "data: [DONE]\n\n"


def _sse(message: dict[str, object]) -> str:
    return f"data: {json.dumps(message, ensure_ascii=False, separators=(',', ':'))}\n\n"
