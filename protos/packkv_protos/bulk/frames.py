"""The frames of the bulk protocol, version 1, byte by byte; those that framing.py has as well.

GREETING  server   magic "PKVbulk\\n", version u16, nonce (16)
HELLO     client   version u16, token
WELCOME   server   version u16
ERROR     server   a sentence
GET       client   first and count of layers u32 u32, of heads u32 u32, max_bytes u64, groups u32,
                   then chain hashes (32). `code` 1: only what this server holds itself; nodes
                   ask each other so
FOUND     server   blocks u32, groups u32, extents u32; then for each block its length u32, for
                   each block its miss u8, for each group first layer, layers and extents
                   u32 u32 u32, for each extent block, offset and length u32 u32 u32. Runs follow
PUT       client   for each block chain hash (32) and length u64; more of them may follow
WANTED    server   for each of the next blocks a byte: 1, send its bytes now; 0, do not
END       client   nothing: all blocks of the Put have been named
RESULTS   server   for each block its status and a reason

A run is a mark u64 and so many bytes of payloads. Mark 0 ends the answer; mark 2^64 - 1 says that
an ERROR frame comes instead of the rest.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from packkv_protos import framing
from packkv_protos.framing import HASH_BYTES, MAX_SENTENCE_BYTES, U16
from packkv_protos.framing import MAX_BLOCKS as MAX_BLOCKS
from packkv_protos.framing import PREFIX as PREFIX
from packkv_protos.framing import FrameError as FrameError
from packkv_protos.framing import Result as Result

MAGIC: Final = b"PKVbulk\n"
VERSION: Final = 1
MAX_GROUPS: Final = 65_535

MARK: Final = struct.Struct("<Q")
RUNS_END: Final = 0
RUNS_FAIL: Final = 2**64 - 1
# The code of a GET for what the server holds itself.
OWN: Final = 1

_GET = struct.Struct("<IIIIQI")
_FOUND = struct.Struct("<III")
_PUT_ROW = np.dtype([("chain_hash", "V32"), ("length", "<u8")])

# Rows of first layer, number of layers, number of extents.
Groups = npt.NDArray[np.uint32]
# Rows of block, offset in the payload, length.
Extents = npt.NDArray[np.uint32]


class Kind(IntEnum):
    """What a frame is."""

    GREETING = 1
    HELLO = 2
    WELCOME = 3
    ERROR = 4
    GET = 5
    FOUND = 6
    PUT = 7
    WANTED = 8
    END = 9
    RESULTS = 10


# The largest body of each kind; that of FOUND has room for every head range of 16,384 blocks of 128
# layers.
MAX_BODY: Final = {
    Kind.GREETING: framing.MAX_GREETING_BYTES,
    Kind.HELLO: framing.MAX_HELLO_BYTES,
    Kind.WELCOME: U16.size,
    Kind.ERROR: MAX_SENTENCE_BYTES,
    Kind.GET: _GET.size + HASH_BYTES * MAX_BLOCKS,
    Kind.FOUND: 32 << 20,
    Kind.PUT: _PUT_ROW.itemsize * MAX_BLOCKS,
    Kind.WANTED: MAX_BLOCKS,
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


class Frame(NamedTuple):
    """A frame that has arrived whole."""

    kind: Kind
    code: int
    body: memoryview


class Get(NamedTuple):
    """Which blocks, and what of them; a count of 0 is all layers or heads."""

    layers: tuple[int, int]
    heads: tuple[int, int]
    max_bytes: int
    groups: int
    chain_hashes: list[bytes]


class Found(NamedTuple):
    """An answer for each block, and in which order its bytes follow. Nothing of it is checked but
    its own size."""

    lengths: npt.NDArray[np.uint32]
    misses: npt.NDArray[np.uint8]
    groups: Groups
    extents: Extents


def pack_greeting(nonce: bytes) -> bytes:
    return pack(Kind.GREETING, _framing.greeting(nonce))


def pack_hello(token: str | None) -> bytes:
    return pack(Kind.HELLO, _framing.hello(token))


def pack_error(code: int, sentence: str) -> bytes:
    return pack(Kind.ERROR, framing.sentence(sentence), code)


def pack_results(results: Sequence[Result]) -> bytes:
    return pack(Kind.RESULTS, framing.results(results))


def pack_welcome() -> bytes:
    return pack(Kind.WELCOME, U16.pack(VERSION))


def read_welcome(body: memoryview) -> None:
    """Raises FrameError."""
    framing.check_size("WELCOME", body, U16.size)
    if U16.unpack(body) != (VERSION,):
        raise FrameError(f"WELCOME has version {U16.unpack(body)[0]}, expected {VERSION}")


def pack_get(get: Get, *, own: bool = False) -> bytes:
    """`own`: only what the server holds itself."""
    fixed = _GET.pack(*get.layers, *get.heads, get.max_bytes, get.groups)
    return pack(Kind.GET, fixed + b"".join(get.chain_hashes), OWN if own else 0)


def read_get(body: memoryview) -> Get:
    """Raises FrameError."""
    hashes = framing.count_rows("GET", body, _GET.size, HASH_BYTES)
    first_layer, layers, first_head, heads, max_bytes, groups = _GET.unpack_from(body)
    if not 1 <= groups <= MAX_GROUPS:
        raise FrameError(f"GET asks for {groups} groups; allowed: 1 to {MAX_GROUPS}")
    names = [
        bytes(body[_GET.size + HASH_BYTES * i : _GET.size + HASH_BYTES * (i + 1)])
        for i in range(hashes)
    ]
    return Get((first_layer, layers), (first_head, heads), max_bytes, groups, names)


def pack_found(found: Found) -> bytes:
    """Raises FrameError when there are more extents than a frame holds."""
    counts = _FOUND.pack(len(found.lengths), len(found.groups), len(found.extents))
    arrays = (found.lengths.astype("<u4"), found.misses, found.groups, found.extents)
    return pack(Kind.FOUND, b"".join([counts, *(array.tobytes() for array in arrays)]))


def read_found(body: memoryview) -> Found:
    """Raises FrameError."""
    if len(body) < _FOUND.size:
        raise FrameError(f"FOUND has {len(body)} bytes, the least is {_FOUND.size}")
    blocks, groups, extents = _FOUND.unpack_from(body)
    framing.check_size("FOUND", body, _FOUND.size + 5 * blocks + 12 * groups + 12 * extents)
    lengths_end = _FOUND.size + 4 * blocks
    groups_at = lengths_end + blocks
    return Found(
        np.frombuffer(body, "<u4", blocks, _FOUND.size),
        np.frombuffer(body, np.uint8, blocks, lengths_end),
        np.frombuffer(body, "<u4", 3 * groups, groups_at).reshape(-1, 3),
        np.frombuffer(body, "<u4", 3 * extents, groups_at + 12 * groups).reshape(-1, 3),
    )


def pack_put(blocks: Sequence[tuple[bytes, int]]) -> bytes:
    return pack(Kind.PUT, np.array(blocks, _PUT_ROW).tobytes())


def read_put(body: memoryview) -> list[tuple[bytes, int]]:
    """Chain hash and length of each block. Raises FrameError."""
    framing.count_rows("PUT", body, 0, _PUT_ROW.itemsize)
    rows = np.frombuffer(body, _PUT_ROW)
    names = [name.tobytes() for name in rows["chain_hash"]]
    return list(zip(names, rows["length"].tolist(), strict=True))


def pack_wanted(wanted: Sequence[bool]) -> bytes:
    return pack(Kind.WANTED, bytes(wanted))


def read_wanted(body: memoryview, most: int) -> list[bool]:
    """For each of the next blocks, at least one and no more than `most`, whether its bytes are
    wanted. Raises FrameError."""
    if not 1 <= len(body) <= most or max(body) > 1:
        raise FrameError(f"WANTED answers for {len(body)} blocks of {most}, with 0 and 1")
    return [byte == 1 for byte in body]
