"""Workers' own API: naming a request's blocks, sending it, asking whether they are ready."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import httpx2

from packkv.errors import ConfigError
from packkv.hashing import HASH_BYTES
from packkv.router.holdings import short_names
from packkv.router.worker import Worker

_CONNECT_S = 2.0
# A worker that is busy may be slow to say so.
_READY_S = 5.0
# As many as a client's server takes, and more than may be under way.
_MAX_CONNECTIONS = 1024
_MAX_NAMED_BYTES = 4 << 20
_MAX_BLOCKS = 16_384

# What concerns one connection, or is made anew. Everything else a worker says goes on.
_OWN_HEADERS = frozenset(
    ("connection", "keep-alive", "transfer-encoding", "content-length", "date", "server")
)


class WorkerGone(Exception):
    """A worker did not answer, or not to the end."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request as it is passed on."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Reply:
    """A worker's answer under way; to be closed.

    Attributes:
        status: of HTTP.
        headers: those that go on.
    """

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._pieces = response.aiter_raw()
        self.status = response.status_code
        self.headers = {
            name: value for name, value in response.headers.items() if name not in _OWN_HEADERS
        }

    @property
    def is_stream(self) -> bool:
        """Whether it is an answer that comes piece by piece, as events."""
        kind = self.headers.get("content-type", "")
        return self.status == HTTPStatus.OK and kind.startswith("text/event-stream")

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes.

        Raises:
            WorkerGone: it ends before its end.
        """
        try:
            async for piece in self._pieces:
                yield piece
        except httpx2.HTTPError as error:
            raise WorkerGone(_words(error)) from error

    async def close(self) -> None:
        """The worker ends the answer if it is not complete."""
        await self._response.aclose()


class Upstream:
    """Connections to all workers. Belongs to the event loop.

    Raises:
        ConfigError: the file of the authority cannot be used.
    """

    def __init__(self, ca: Path | None, request_s: float) -> None:
        try:
            verify = True if ca is None else ssl.create_default_context(cafile=str(ca))
        except OSError as reason:
            raise ConfigError(f"{ca}: {reason}") from reason
        self._client = httpx2.AsyncClient(
            verify=verify,
            timeout=httpx2.Timeout(request_s, connect=_CONNECT_S),
            limits=httpx2.Limits(max_connections=_MAX_CONNECTIONS),
            # workers stand in the same network: a proxy of the environment is not meant for them
            trust_env=False,
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def send(self, worker: Worker, question: Question) -> Reply:
        """The worker's answer, as soon as it begins.

        Raises:
            WorkerGone: there is none.
        """
        request = self._client.build_request(
            question.method,
            worker.url + question.path,
            headers=question.headers,
            content=question.body,
        )
        try:
            return Reply(await self._client.send(request, stream=True))
        except httpx2.HTTPError as error:
            raise WorkerGone(_words(error)) from error

    async def is_ready(self, worker: Worker) -> bool:
        """Whether it says so in time.

        Raises:
            WorkerGone: nobody is there to say anything.
        """
        try:
            reply = await self._client.get(f"{worker.url}/ready", timeout=_READY_S)
        except httpx2.TimeoutException:
            return False
        except httpx2.HTTPError as error:
            raise WorkerGone(_words(error)) from error
        return reply.status_code == HTTPStatus.OK

    async def block_names(
        self, worker: Worker, question: Question, timeout_s: float
    ) -> list[int] | None:
        """The blocks of a request by their short names; None when the worker does not say."""
        url = f"{worker.url}/packkv/blocks{question.path.removeprefix('/v1')}"
        try:
            reply = await self._client.post(
                url, content=question.body, headers=question.headers, timeout=timeout_s
            )
        except httpx2.HTTPError:
            return None
        if reply.status_code != HTTPStatus.OK or len(reply.content) > _MAX_NAMED_BYTES:
            return None
        try:
            return _names_in(reply.json())
        # another server than ours, or another version of it
        except (ValueError, KeyError, TypeError):
            return None


def _names_in(found: Mapping[str, object]) -> list[int]:
    """
    Raises:
        ValueError, KeyError, TypeError: these are no names.
    """
    blocks = found["blocks"]
    if not isinstance(blocks, list) or len(blocks) > _MAX_BLOCKS:
        raise ValueError("no list of blocks")
    names = [bytes.fromhex(name) for name in blocks]
    if any(len(name) != HASH_BYTES for name in names):
        raise ValueError("a name does not have 32 bytes")
    return short_names(names)


def _words(error: httpx2.HTTPError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
