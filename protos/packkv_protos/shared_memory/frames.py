"""The frames of the shared-memory protocol, version 1, byte by byte; those that framing.py has as
well. A file descriptor travels as SCM_RIGHTS with the first byte of its frame.

GREETING  server   magic "PKVshm\\r\\n", version u16, nonce (16)
HELLO     client   version u16, token
ARENA     server   size u64, and the descriptor of the tenant's arena
ERROR     server   a sentence
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
RESULTS   server   for each block its status and a reason
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from packkv_protos import framing
from packkv_protos.framing import HASH_BYTES, MAX_SENTENCE_BYTES
from packkv_protos.framing import MAX_BLOCKS as MAX_BLOCKS
from packkv_protos.framing import PREFIX as PREFIX
from packkv_protos.framing import FrameError as FrameError
from packkv_protos.framing import Result as Result

MAGIC: Final = b"PKVshm\r\n"
VERSION: Final = 1
MAX_EXTENTS: Final = 1 << 20
# What one client may stage: a server reads no further.
MAX_STAGED_BYTES: Final = 1 << 30

_U64 = struct.Struct("<Q")
_LOCATE = struct.Struct("<IIIII")
_LOCATED = struct.Struct("<QII")
_PLACE = np.dtype([("offset", "<u8"), ("length", "<u4"), ("state", "<u4")])
_EXTENT_BYTES = 12
_PUT_ROW = np.dtype([("chain_hash", f"V{HASH_BYTES}"), ("offset", "<u8"), ("length", "<u8")])

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


# The largest body of each kind.
MAX_BODY: Final = {
    Kind.GREETING: framing.MAX_GREETING_BYTES,
    Kind.HELLO: framing.MAX_HELLO_BYTES,
    Kind.ARENA: _U64.size,
    Kind.ERROR: MAX_SENTENCE_BYTES,
    Kind.LOCATE: _LOCATE.size + HASH_BYTES * MAX_BLOCKS,
    Kind.LOCATED: _LOCATED.size + _PLACE.itemsize * MAX_BLOCKS + _EXTENT_BYTES * MAX_EXTENTS,
    Kind.RELEASE: _U64.size,
    Kind.STAGE: _U64.size,
    Kind.PUT: _PUT_ROW.itemsize * MAX_BLOCKS,
    Kind.TAKEN: 0,
    Kind.END: 0,
    Kind.RESULTS: framing.MAX_RESULTS_BYTES,
}


_framing = framing.Framing(MAGIC, VERSION, MAX_BODY)
pack = _framing.pack
read_prefix = _framing.read_prefix
read_greeting = _framing.read_greeting
read_hello = _framing.read_hello
read_error = framing.read_error
read_results = framing.read_results


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


def pack_greeting(nonce: bytes) -> bytes:
    return pack(Kind.GREETING, _framing.greeting(nonce))


def pack_hello(token: str | None) -> bytes:
    return pack(Kind.HELLO, _framing.hello(token))


def pack_error(code: int, sentence: str) -> bytes:
    return pack(Kind.ERROR, framing.sentence(sentence), code)


def pack_results(results: Sequence[Result]) -> bytes:
    return pack(Kind.RESULTS, framing.results(results))


def pack_number(kind: Kind, number: int) -> bytes:
    """ARENA and STAGE with their size, RELEASE with its lease."""
    return pack(kind, _U64.pack(number))


def read_number(kind: Kind, body: memoryview) -> int:
    """Raises FrameError."""
    framing.check_size(kind.name, body, _U64.size)
    number: int = _U64.unpack(body)[0]
    return number


def pack_locate(locate: Locate) -> bytes:
    fixed = _LOCATE.pack(locate.lease_ms, *locate.layers, *locate.heads)
    return pack(Kind.LOCATE, fixed + b"".join(locate.chain_hashes))


def read_locate(body: memoryview) -> Locate:
    """Raises FrameError."""
    framing.count_rows("LOCATE", body, _LOCATE.size, HASH_BYTES)
    lease_ms, *ranges = _LOCATE.unpack_from(body)
    names = bytes(body[_LOCATE.size :])
    hashes = [names[at : at + HASH_BYTES] for at in range(0, len(names), HASH_BYTES)]
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
    framing.count_rows("PUT", body, 0, _PUT_ROW.itemsize)
    rows = np.frombuffer(body, _PUT_ROW)
    offsets, lengths = rows["offset"].tolist(), rows["length"].tolist()
    names = [bytes(name) for name in rows["chain_hash"]]
    return [Staged(*row) for row in zip(names, offsets, lengths, strict=True)]
