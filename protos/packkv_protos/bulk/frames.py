"""The frames of the bulk protocol, version 1, byte by byte. Little-endian, nothing is padded.

A frame is 8 bytes, kind u8, code u8, zero u16, length u32, and a body of `length` bytes.

GREETING  server   magic "PKVbulk\\n", version u16, nonce (16)
HELLO     client   version u16, the bearer token in UTF-8, empty for none
WELCOME   server   version u16
ERROR     server   the sentence, in UTF-8; `code` is the gRPC status code
GET       client   first and count of layers u32 u32, of heads u32 u32, max_bytes u64, groups u32,
                   then chain hashes (32)
FOUND     server   blocks u32, groups u32, extents u32; then for each block its length u32, for
                   each block its miss u8, for each group first layer, layers and extents
                   u32 u32 u32, for each extent block, offset and length u32 u32 u32. Runs follow
PUT       client   for each block chain hash (32) and length u64; more of them may follow
WANTED    server   for each of the next blocks a byte: 1, send its bytes now; 0, do not
END       client   nothing: all blocks of the Put have been named
RESULTS   server   for each block status u8, length of the reason u16, and the reason in UTF-8

A run is a mark u64 and so many bytes of payloads. Mark 0 ends the answer; mark 2^64 - 1 says that
an ERROR frame comes instead of the rest.
"""

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

MAGIC: Final = b"PKVbulk\n"
VERSION: Final = 1
NONCE_BYTES: Final = 16
HASH_BYTES: Final = 32
MAX_BLOCKS: Final = 16_384
MAX_GROUPS: Final = 65_535
MAX_TOKEN_BYTES: Final = 8192
MAX_SENTENCE_BYTES: Final = 2048
MAX_REASON_BYTES: Final = 512

PREFIX: Final = struct.Struct("<BBHI")
MARK: Final = struct.Struct("<Q")
RUNS_END: Final = 0
RUNS_FAIL: Final = 2**64 - 1

_U16 = struct.Struct("<H")
_GREETING = struct.Struct(f"<8sH{NONCE_BYTES}s")
_GET = struct.Struct("<IIIIQI")
_FOUND = struct.Struct("<III")
_PUT_ROW = np.dtype([("chain_hash", "V32"), ("length", "<u8")])
_RESULT = struct.Struct("<BH")

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


# The largest body of each kind. A longer one is refused before a byte of it is read. That of FOUND
# has room for every head range of 16,384 blocks of 128 layers.
MAX_BODY: Final = {
    Kind.GREETING: _GREETING.size,
    Kind.HELLO: _U16.size + MAX_TOKEN_BYTES,
    Kind.WELCOME: _U16.size,
    Kind.ERROR: MAX_SENTENCE_BYTES,
    Kind.GET: _GET.size + HASH_BYTES * MAX_BLOCKS,
    Kind.FOUND: 32 << 20,
    Kind.PUT: _PUT_ROW.itemsize * MAX_BLOCKS,
    Kind.WANTED: MAX_BLOCKS,
    Kind.END: 0,
    Kind.RESULTS: (_RESULT.size + MAX_REASON_BYTES) * MAX_BLOCKS,
}


class FrameError(ValueError):
    """Bytes that are no frame of this protocol, or not the one that is due."""


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
    if len(body) < _U16.size:
        raise FrameError(f"HELLO has {len(body)} bytes, the least is {_U16.size}")
    (version,) = _U16.unpack_from(body)
    if version != VERSION:
        raise FrameError(f"HELLO has version {version}, this server speaks {VERSION}")
    return _text(body[_U16.size :]) or None


def pack_welcome() -> bytes:
    return pack(Kind.WELCOME, _U16.pack(VERSION))


def read_welcome(body: memoryview) -> None:
    """Raises FrameError."""
    _exactly(Kind.WELCOME, body, _U16.size)
    if _U16.unpack(body) != (VERSION,):
        raise FrameError(f"WELCOME has version {_U16.unpack(body)[0]}, expected {VERSION}")


def pack_error(code: int, sentence: str) -> bytes:
    return pack(Kind.ERROR, _shortened(sentence, MAX_SENTENCE_BYTES), code)


def read_error(body: memoryview) -> str:
    return bytes(body).decode(errors="replace")


def pack_get(get: Get) -> bytes:
    fixed = _GET.pack(*get.layers, *get.heads, get.max_bytes, get.groups)
    return pack(Kind.GET, fixed + b"".join(get.chain_hashes))


def read_get(body: memoryview) -> Get:
    """Raises FrameError."""
    hashes = _rows(Kind.GET, body, _GET.size, HASH_BYTES)
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
    _exactly(Kind.FOUND, body, _FOUND.size + 5 * blocks + 12 * groups + 12 * extents)
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
    _rows(Kind.PUT, body, 0, _PUT_ROW.itemsize)
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


def pack_results(results: Sequence[Result]) -> bytes:
    parts = []
    for result in results:
        reason = _shortened(result.reason, MAX_REASON_BYTES)
        parts += [_RESULT.pack(result.status, len(reason)), reason]
    return pack(Kind.RESULTS, b"".join(parts))


def read_results(body: memoryview) -> Iterator[Result]:
    """Raises FrameError."""
    while body:
        if len(body) < _RESULT.size:
            raise FrameError(f"RESULTS ends with {len(body)} bytes; a result has {_RESULT.size}")
        status, length = _RESULT.unpack_from(body)
        reason = body[_RESULT.size : _RESULT.size + length]
        if len(reason) != length:
            raise FrameError(f"a reason of {length} bytes has {len(reason)}")
        yield Result(status, bytes(reason).decode(errors="replace"))
        body = body[_RESULT.size + length :]


def _rows(kind: Kind, body: memoryview, fixed: int, size: int) -> int:
    count, rest = divmod(len(body) - fixed, size)
    if count < 1 or rest:
        raise FrameError(f"{kind.name} has {len(body)} bytes, not {fixed} and some of {size} each")
    return count


def _exactly(kind: Kind, body: memoryview, size: int) -> None:
    if len(body) != size:
        raise FrameError(f"{kind.name} has {len(body)} bytes, expected {size}")


def _shortened(text: str, most: int) -> bytes:
    return text.encode()[:most]


def _text(raw: memoryview) -> str:
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise FrameError("a token is not UTF-8") from error
