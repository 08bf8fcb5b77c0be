"""Guard: before any route, who asks and how much they send."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from packkv.serving.errors import AccessRefused, ApiError, BadRequest, BodyTooLarge

# Probes have no key; they are told nothing but yes or no.
_OPEN_PATHS = frozenset({"/health", "/ready"})

_BODY_S = 30.0


class Guard:
    """ASGI middleware: checks the API key, then reads the body within its bounds.

    Args:
        app: what is guarded; it finds the body already read.
        keys: API keys; none: everybody may ask.
        max_body_bytes: the most that is read.
        on_refusal: called for each request that gets no further.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: frozenset[str],
        max_body_bytes: int,
        on_refusal: Callable[[], None],
    ) -> None:
        self._app = app
        self._on_refusal = on_refusal
        # digests have one length, so comparing tells nothing about the keys
        self._digests = [_digest(key.encode()) for key in sorted(keys)]
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = dict(scope["headers"])
            if scope["path"] not in _OPEN_PATHS:
                self._check_key(headers.get(b"authorization", b""))
            body = await self._read(receive, headers.get(b"content-length", b""))
        except ApiError as error:
            self._on_refusal()
            # what is left of the body is not read, so the connection cannot be used again
            reply = JSONResponse(
                error.body(), error.status, error.headers() | {"connection": "close"}
            )
            await reply(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _again(body, receive), send)

    def _check_key(self, authorization: bytes) -> None:
        if not self._digests:
            return
        scheme, _, key = authorization.partition(b" ")
        shown = _digest(key.strip())
        # all of them are compared, whichever fits
        fits = [hmac.compare_digest(shown, digest) for digest in self._digests]
        if scheme.lower() != b"bearer" or not any(fits):
            raise AccessRefused(
                "no API key, or one that this server does not know: send "
                "'Authorization: Bearer KEY'",
                code="invalid_api_key",
            )

    async def _read(self, receive: Receive, announced: bytes) -> bytes | None:
        """The body; None when the client went away."""
        if announced.isdigit() and int(announced[:20]) > self._max_body_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self._max_body_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise BadRequest(f"the body did not arrive within {_BODY_S:.0f} s") from None

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the request has more than {self._max_body_bytes} bytes")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _again(body: bytes, receive: Receive) -> Receive:
    """Receives the body that was read, and then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message
