"""The frames of the shared-memory protocol, version 1, byte by byte. Little-endian, no padding.

A frame is 8 bytes, kind u8, code u8, zero u16, length u32, and a body of `length` bytes. A file
descriptor travels as SCM_RIGHTS with the first byte of its frame.

GREETING  server   magic "PKVshm\\r\\n", version u16, nonce (16)
HELLO     client   version u16, the bearer token in UTF-8, empty for none
ARENA     server   size u64, and the descriptor of the tenant's arena
ERROR     server   the sentence, in UTF-8; `code` is the gRPC status code
LOCATE    client   lease in ms u32, first and count of layers u32 u32, of heads u32 u32,
                   then chain hashes (32)
LOCATED   server   lease id u64, its ms u32, blocks u32; then for each block its offset in the arena
                   u64, length u32 and state u32; then, when layers or heads were chosen, the bytes
                   wanted: block, offset in the payload and length, u32 u32 u32
RELEASE   client   lease id u64. Is not answered
STAGE     client   size u64, and the descriptor of a sealed memory file. Is not answered
PUT       client   for each block chain hash (32), offset in the staged file u64, length u64; more
                   of them may follow, and then an END
TAKEN     server   nothing: the bytes of one PUT have been copied, the file may change there
END       client   nothing: all blocks of the Put have been named
RESULTS   server   for each block status u8, length of the reason u16, and the reason in UTF-8
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

MAGIC: Final = b"PKVshm\r\n"
VERSION: Final = 1
NONCE_BYTES: Final = 16
HASH_BYTES: Final = 32
MAX_BLOCKS: Final = 16_384
MAX_EXTENTS: Final = 1 << 20
MAX_TOKEN_BYTES: Final = 8192
MAX_SENTENCE_BYTES: Final = 2048
MAX_REASON_BYTES: Final = 512
# What one client may stage: a server reads no further.
MAX_STAGED_BYTES: Final = 1 << 30

PREFIX: Final = struct.Struct("<BBHI")
_GREETING = struct.Struct(f"<8sH{NONCE_BYTES}s")
_U16 = struct.Struct("<H")
_U64 = struct.Struct("<Q")
_LOCATE = struct.Struct("<IIIII")
_LOCATED = struct.Struct("<QII")
_PLACE = np.dtype([("offset", "<u8"), ("length", "<u4"), ("state", "<u4")])
_EXTENT_BYTES = 12
_PUT_ROW = np.dtype([("chain_hash", f"V{HASH_BYTES}"), ("offset", "<u8"), ("length", "<u8")])
_RESULT = struct.Struct("<BH")

# Rows of offset, length and state; of block, offset in the payload and length.
Places = npt.NDArray[Any]
Extents = npt.NDArray[np.uint32]


class Kind(IntEnum):
    """What a frame is."""

    GREETING = 1
    HELLO = 2
    ARENA = 3
    ERROR = 4
    LOCATE = 5
    LOCATED = 6
    RELEASE = 7
    STAGE = 8
    PUT = 9
    TAKEN = 10
    END = 11
    RESULTS = 12


class State(IntEnum):
    """What LOCATED says of a block; misses have the numbers of MissReason."""

    HERE = 0
    ABSENT = 1
    CORRUPT = 2
    HEADS = 3
    ELSEWHERE = 255  # it is there, but not in the arena: to be fetched on another path


# The largest body of each kind. A longer one is refused before a byte of it is read.
MAX_BODY: Final = {
    Kind.GREETING: _GREETING.size,
    Kind.HELLO: _U16.size + MAX_TOKEN_BYTES,
    Kind.ARENA: _U64.size,
    Kind.ERROR: MAX_SENTENCE_BYTES,
    Kind.LOCATE: _LOCATE.size + HASH_BYTES * MAX_BLOCKS,
    Kind.LOCATED: _LOCATED.size + _PLACE.itemsize * MAX_BLOCKS + _EXTENT_BYTES * MAX_EXTENTS,
    Kind.RELEASE: _U64.size,
    Kind.STAGE: _U64.size,
    Kind.PUT: _PUT_ROW.itemsize * MAX_BLOCKS,
    Kind.TAKEN: 0,
    Kind.END: 0,
    Kind.RESULTS: (_RESULT.size + MAX_REASON_BYTES) * MAX_BLOCKS,
}


class FrameError(ValueError):
    """Bytes that are no frame of this protocol, or not the one that is due."""


class Locate(NamedTuple):
    """Which blocks, and what of them; a count of 0 is all layers or heads."""

    lease_ms: int
    layers: tuple[int, int]
    heads: tuple[int, int]
    chain_hashes: list[bytes]


class Located(NamedTuple):
    """A place for each block. Nothing of it is checked but its own size."""

    lease_id: int
    lease_ms: int
    places: Places
    extents: Extents


class Staged(NamedTuple):
    """A block of a Put: where its bytes are in the staged file."""

    chain_hash: bytes
    offset: int
    length: int


class Result(NamedTuple):
    """What became of one block of a Put: `status` is PutStatus of the proto."""

    status: int
    reason: str


def pack(kind: Kind, body: bytes = b"", code: int = 0) -> bytes:
    """A whole frame. Raises FrameError when the body is larger than the other end takes."""
    if len(body) > MAX_BODY[kind]:
        raise FrameError(f"{kind.name} has {len(body)} bytes, the limit is {MAX_BODY[kind]}")
    return PREFIX.pack(kind, code, 0, len(body)) + body


def read_prefix(prefix: bytes | memoryview) -> tuple[Kind, int, int]:
    """Kind, code and length of the body. Raises FrameError."""
    number, code, zero, length = PREFIX.unpack_from(prefix)
    if number not in MAX_BODY or zero:
        raise FrameError(f"a frame begins with {bytes(prefix[:4]).hex()}; no frame does")
    kind = Kind(number)
    if length > MAX_BODY[kind]:
        raise FrameError(f"{kind.name} has {length} bytes, the limit is {MAX_BODY[kind]}")
    return kind, code, length


def pack_greeting(nonce: bytes) -> bytes:
    return pack(Kind.GREETING, _GREETING.pack(MAGIC, VERSION, nonce))


def read_greeting(body: memoryview) -> bytes:
    """The nonce. Raises FrameError."""
    _exactly(Kind.GREETING, body, _GREETING.size)
    magic, version, nonce = _GREETING.unpack(body)
    if magic != MAGIC or version != VERSION:
        raise FrameError(f"magic is {magic!r}, version {version}; expected {MAGIC!r}, {VERSION}")
    return bytes(nonce)


def pack_hello(token: str | None) -> bytes:
    return pack(Kind.HELLO, _U16.pack(VERSION) + (token or "").encode())


def read_hello(body: memoryview) -> str | None:
    """The token, None when there is none. Raises FrameError."""
    if len(body) < _U16.size or _U16.unpack_from(body) != (VERSION,):
        raise FrameError(f"HELLO is {bytes(body[:2])!r}…; this server speaks version {VERSION}")
    try:
        return bytes(body[_U16.size :]).decode() or None
    except UnicodeDecodeError:
        raise FrameError("the token of HELLO is not UTF-8") from None


def pack_error(code: int, sentence: str) -> bytes:
    return pack(Kind.ERROR, _shortened(sentence, MAX_SENTENCE_BYTES), code)


def read_error(body: memoryview) -> str:
    return bytes(body).decode(errors="replace")


def pack_number(kind: Kind, number: int) -> bytes:
    """ARENA and STAGE with their size, RELEASE with its lease."""
    return pack(kind, _U64.pack(number))


def read_number(kind: Kind, body: memoryview) -> int:
    """Raises FrameError."""
    _exactly(kind, body, _U64.size)
    number: int = _U64.unpack(body)[0]
    return number


def pack_locate(locate: Locate) -> bytes:
    fixed = _LOCATE.pack(locate.lease_ms, *locate.layers, *locate.heads)
    return pack(Kind.LOCATE, fixed + b"".join(locate.chain_hashes))


def read_locate(body: memoryview) -> Locate:
    """Raises FrameError."""
    rest = len(body) - _LOCATE.size
    if rest < HASH_BYTES or rest % HASH_BYTES:
        raise FrameError(f"LOCATE has {len(body)} bytes; it names at least one block of 32")
    lease_ms, *ranges = _LOCATE.unpack_from(body)
    names = bytes(body[_LOCATE.size :])
    hashes = [names[at : at + HASH_BYTES] for at in range(0, rest, HASH_BYTES)]
    return Locate(lease_ms, (ranges[0], ranges[1]), (ranges[2], ranges[3]), hashes)


def new_places(count: int) -> Places:
    """Rows that are all zero: every block here, with no bytes."""
    return np.zeros(count, _PLACE)


def pack_located(located: Located) -> bytes:
    fixed = _LOCATED.pack(located.lease_id, located.lease_ms, len(located.places))
    extents = np.ascontiguousarray(located.extents, "<u4").tobytes()
    return pack(Kind.LOCATED, fixed + located.places.tobytes() + extents)


def read_located(body: memoryview) -> Located:
    """Raises FrameError."""
    if len(body) < _LOCATED.size:
        raise FrameError(f"LOCATED has {len(body)} bytes, the least is {_LOCATED.size}")
    lease_id, lease_ms, count = _LOCATED.unpack_from(body)
    end = _LOCATED.size + _PLACE.itemsize * count
    if end > len(body) or (len(body) - end) % _EXTENT_BYTES:
        raise FrameError(f"LOCATED has {len(body)} bytes for {count} blocks")
    places = np.frombuffer(body, _PLACE, count, _LOCATED.size)
    extents = np.frombuffer(body[end:], "<u4").reshape(-1, 3)
    return Located(lease_id, lease_ms, places, extents)


def pack_put(blocks: Sequence[Staged]) -> bytes:
    return pack(Kind.PUT, np.array(blocks, _PUT_ROW).tobytes())


def read_put(body: memoryview) -> list[Staged]:
    """Raises FrameError."""
    if not body or len(body) % _PUT_ROW.itemsize:
        raise FrameError(f"PUT has {len(body)} bytes; a block has {_PUT_ROW.itemsize}")
    rows = np.frombuffer(body, _PUT_ROW)
    offsets, lengths = rows["offset"].tolist(), rows["length"].tolist()
    names = [bytes(name) for name in rows["chain_hash"]]
    return [Staged(*row) for row in zip(names, offsets, lengths, strict=True)]


def pack_results(results: Sequence[Result]) -> bytes:
    parts = []
    for result in results:
        reason = _shortened(result.reason, MAX_REASON_BYTES)
        parts += [_RESULT.pack(result.status, len(reason)), reason]
    return pack(Kind.RESULTS, b"".join(parts))


def read_results(body: memoryview) -> list[Result]:
    """Raises FrameError."""
    results, at = [], 0
    while at < len(body):
        if at + _RESULT.size > len(body):
            raise FrameError("RESULTS ends within a result")
        status, length = _RESULT.unpack_from(body, at)
        at += _RESULT.size + length
        if at > len(body):
            raise FrameError("RESULTS ends within a reason")
        results.append(Result(status, bytes(body[at - length : at]).decode(errors="replace")))
    return results


def _exactly(kind: Kind, body: memoryview, size: int) -> None:
    if len(body) != size:
        raise FrameError(f"{kind.name} has {len(body)} bytes, expected {size}")


def _shortened(text: str, size: int) -> bytes:
    return text.encode()[:size].decode(errors="ignore").encode()
