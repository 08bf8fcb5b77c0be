"""What the protocols written by hand have in common. Little-endian, nothing is padded.

A frame is 8 bytes, kind u8, code u8, zero u16, length u32, and a body of `length` bytes. Each
protocol has a magic, a version, and its own kinds; these mean the same in all:

GREETING  server   magic (8), version u16, nonce (16)
HELLO     client   version u16, the bearer token in UTF-8, empty for none
ERROR     server   the sentence, in UTF-8; `code` is the gRPC status code
RESULTS   server   for each block of a Put status u8, length of the reason u16, and the reason in
                   UTF-8
"""

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final, Generic, NamedTuple, TypeVar

NONCE_BYTES: Final = 16
HASH_BYTES: Final = 32
MAX_BLOCKS: Final = 16_384
MAX_TOKEN_BYTES: Final = 8192
MAX_SENTENCE_BYTES: Final = 2048
MAX_REASON_BYTES: Final = 512

PREFIX: Final = struct.Struct("<BBHI")
U16: Final = struct.Struct("<H")
_GREETING = struct.Struct(f"<8sH{NONCE_BYTES}s")
_RESULT = struct.Struct("<BH")

MAX_GREETING_BYTES: Final = _GREETING.size
MAX_HELLO_BYTES: Final = U16.size + MAX_TOKEN_BYTES
MAX_RESULTS_BYTES: Final = (_RESULT.size + MAX_REASON_BYTES) * MAX_BLOCKS

KindT = TypeVar("KindT", bound=IntEnum)


class FrameError(ValueError):
    """Bytes that are no frame of a protocol, or not the one that is due."""


class Result(NamedTuple):
    """What became of one block of a Put: `status` is PutStatus of the proto."""

    status: int
    reason: str


class Framing(Generic[KindT]):
    """Frames of one protocol.

    Args:
        magic: 8 bytes.
        version: the only one that is spoken.
        max_body: the largest body of each kind. A longer one is refused before a byte of it is
            read.
    """

    def __init__(self, magic: bytes, version: int, max_body: Mapping[KindT, int]) -> None:
        self._magic = magic
        self._version = version
        self._max_body = max_body
        self._kinds = {int(kind): kind for kind in max_body}

    def pack(self, kind: KindT, body: bytes = b"", code: int = 0) -> bytes:
        """A whole frame. Raises FrameError when the body is larger than the other end takes."""
        self._check_length(kind, len(body))
        return PREFIX.pack(kind, code, 0, len(body)) + body

    def read_prefix(self, prefix: bytes | memoryview) -> tuple[KindT, int, int]:
        """Kind, code and length of the body. Raises FrameError."""
        number, code, zero, length = PREFIX.unpack_from(prefix)
        kind = self._kinds.get(number)
        if kind is None or zero:
            raise FrameError(f"a frame begins with {bytes(prefix[:4]).hex()}; no frame does")
        self._check_length(kind, length)
        return kind, code, length

    def greeting(self, nonce: bytes) -> bytes:
        """The body of GREETING."""
        return _GREETING.pack(self._magic, self._version, nonce)

    def read_greeting(self, body: memoryview) -> bytes:
        """The nonce. Raises FrameError."""
        check_size("GREETING", body, _GREETING.size)
        magic, version, nonce = _GREETING.unpack(body)
        if magic != self._magic:
            raise FrameError(f"magic is {magic!r}, expected {self._magic!r}")
        self._check_version("GREETING", version)
        return bytes(nonce)

    def hello(self, token: str | None) -> bytes:
        """The body of HELLO."""
        return U16.pack(self._version) + (token or "").encode()

    def read_hello(self, body: memoryview) -> str | None:
        """The token, None when there is none. Raises FrameError."""
        if len(body) < U16.size:
            raise FrameError(f"HELLO has {len(body)} bytes, the least is {U16.size}")
        self._check_version("HELLO", U16.unpack_from(body)[0])
        try:
            return bytes(body[U16.size :]).decode() or None
        except UnicodeDecodeError as error:
            raise FrameError("the token of HELLO is not UTF-8") from error

    def _check_length(self, kind: KindT, length: int) -> None:
        if length > self._max_body[kind]:
            raise FrameError(f"{kind.name} has {length} bytes, the limit is {self._max_body[kind]}")

    def _check_version(self, name: str, version: int) -> None:
        if version != self._version:
            raise FrameError(f"{name} has version {version}, this end speaks {self._version}")


def sentence(text: str) -> bytes:
    """The body of ERROR."""
    return _shortened(text, MAX_SENTENCE_BYTES)


def read_error(body: memoryview) -> str:
    """The sentence of an ERROR."""
    return bytes(body).decode(errors="replace")


def results(rows: Sequence[Result]) -> bytes:
    """The body of RESULTS."""
    parts = []
    for status, reason in rows:
        text = _shortened(reason, MAX_REASON_BYTES)
        parts += [_RESULT.pack(status, len(text)), text]
    return b"".join(parts)


def read_results(body: memoryview) -> list[Result]:
    """Raises FrameError."""
    rows, at = [], 0
    while at < len(body):
        if at + _RESULT.size > len(body):
            raise FrameError(f"RESULTS ends with {len(body) - at} bytes of a result")
        status, length = _RESULT.unpack_from(body, at)
        at += _RESULT.size + length
        if at > len(body):
            raise FrameError(f"RESULTS ends {at - len(body)} bytes before a reason does")
        rows.append(Result(status, bytes(body[at - length : at]).decode(errors="replace")))
    return rows


def check_size(name: str, body: memoryview, size: int) -> None:
    """Raises FrameError unless the body has exactly that size."""
    if len(body) != size:
        raise FrameError(f"{name} has {len(body)} bytes, expected {size}")


def count_rows(name: str, body: memoryview, fixed: int, size: int) -> int:
    """How many rows of `size` bytes follow the first `fixed`; at least one. Raises FrameError."""
    count, rest = divmod(len(body) - fixed, size)
    if count < 1 or rest:
        raise FrameError(f"{name} has {len(body)} bytes, not {fixed} and some of {size} each")
    return count


def _shortened(text: str, most: int) -> bytes:
    # not within a character
    return text.encode()[:most].decode(errors="ignore").encode()
