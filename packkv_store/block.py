"""What the server knows of a block: its name and the head of its payload.

The layout is in docs/codec.md, section "Payload". The server reads the head to verify checksums
and to find the bytes of a layer; what is inside a section is the codec's business.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, NewType, NoReturn, Self, cast

import numpy as np
import numpy.typing as npt
import xxhash

from packkv_store.errors import PayloadError

ChainHash = NewType("ChainHash", bytes)
# The name of a block inside this server: tenant tag (16 bytes), then chain hash (32 bytes).
BlockKey = NewType("BlockKey", bytes)
Bounds = npt.NDArray[np.uint32]

HASH_BYTES = 32
TAG_BYTES = 16
MAGIC = b"PackKV\r\n"
VERSION = 2
HEADER = struct.Struct("<8sHHBBHHHHHHeI32s32s32s32sQQ16s")
ROW_STRUCT = struct.Struct("<II16s")
ROW = np.dtype([("offset", "<u4"), ("length", "<u4"), ("digest", "V16")])
# The same in numbers: offset, length, and four of the digest.
ROW_WORDS = 6
ALIGN = 16
CHECKSUM_AT = 176
MAX_TOKENS = 64
MAX_CODEC = 4
MAX_DTYPE = 2
MAX_HEAD_DIM = 512
MAX_COMPUTE_MS = 65_504.0
RAW_CODEC = 1
RESIDENT = 0
COLD = 1
# No preamble of a cold payload is longer than the first, and the second for each section.
PREAMBLE_BYTES = 4096
PREAMBLE_SECTION_BYTES = 512


def block_key(tag: bytes, chain_hash: ChainHash) -> BlockKey:
    """The name under which a tenant's block is kept; two tenants never share one."""
    return BlockKey(tag + chain_hash)


def block_keys(tag: bytes, chain_hashes: Iterable[ChainHash]) -> list[BlockKey]:
    """As `block_key`, for the thousands of a Match."""
    return cast(list[BlockKey], list(map(tag.__add__, chain_hashes)))


def chain_hash_of(key: BlockKey) -> ChainHash:
    """The public half of a block's name."""
    return ChainHash(key[TAG_BYTES:])


class TierName(StrEnum):
    """The two places where a node keeps blocks, fastest first."""

    RAM = "ram"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range [first, first + count) of layers or KV heads; count 0 means all."""

    first: int = 0
    count: int = 0

    def within(self, first: int, count: int) -> range:
        """The part of [first, first + count) that this span covers."""
        if self.count == 0:
            return range(first, first + count)
        return range(max(first, self.first), min(first + count, self.first + self.count))


@dataclass(frozen=True, slots=True, eq=False)
class PayloadHead:
    """The verified head of a payload. `bounds[i]` is where section i starts, layer-major;
    the last bound is the payload's end. `compute_ms` is what its publisher says that the block
    took to compute, 0 if nothing."""

    tokens: int
    layers: int
    first_head: int
    heads: int
    root_hash: bytes
    chain_hash: ChainHash
    payload_length: int
    first_token: int
    compute_ms: float
    is_cold: bool
    head_length: int
    bounds: Bounds

    @classmethod
    def read(cls, payload: memoryview) -> Self:
        """The head of `payload`, which may stop anywhere after it.

        Every length and offset is checked before it is used, then the head's checksum.
        Raises PayloadError, which carries the value found and the value expected.
        """
        header = _read_header(payload)
        head_length = header.head_length
        _within("payload length", header.payload_length, head_length, 2**32 - 1)
        _within("bytes present of the head", len(payload), head_length, None)
        if head_checksum(payload[:head_length]) != header.head_checksum:
            raise PayloadError("head checksum", header.head_checksum.hex(), "that of its bytes")
        return cls(
            tokens=header.tokens,
            layers=header.layers,
            first_head=header.first_head,
            heads=header.heads,
            root_hash=header.root_hash,
            chain_hash=ChainHash(header.chain_hash),
            payload_length=header.payload_length,
            first_token=header.first_token,
            compute_ms=header.compute_ms,
            is_cold=header.form == COLD,
            head_length=head_length,
            bounds=_section_bounds(payload, header, head_length),
        )

    def covers_heads(self, wanted: Span) -> bool:
        """Whether this payload holds every KV head that is wanted."""
        return covers(self.first_head, self.heads, wanted)

    def layer_run(self, layer: int, heads: Span) -> tuple[int, int]:
        """Start and end of the bytes of one layer's wanted heads; they lie side by side."""
        run = heads.within(self.first_head, self.heads)
        row = layer * self.heads + run.start - self.first_head
        return int(self.bounds[row]), int(self.bounds[row + len(run)])

    def layer_at(self, offset: int) -> int:
        """The layer whose bytes are at this offset of the payload."""
        return (int(np.searchsorted(self.bounds, offset, "right")) - 1) // self.heads

    def verify_sections(self, payload: memoryview) -> None:
        """Checks the digest of every section. Raises PayloadError at the first that is wrong."""
        bounds = self.bounds.tolist()
        # a payload has hundreds of sections: the loop over them is C's
        sections = map(payload.__getitem__, map(slice, bounds, bounds[1:]))
        found = b"".join(map(xxhash.xxh3_128_digest, sections))
        table = np.frombuffer(payload, ROW, self.layers * self.heads, HEADER.size)
        expected = table["digest"].tobytes()
        if found == expected:
            return
        size = ROW["digest"].itemsize
        for at in range(0, len(expected), size):
            if found[at : at + size] != expected[at : at + size]:
                layer, head = divmod(at // size, self.heads)
                where = f"digest of the section of layer {layer}, head {self.first_head + head}"
                raise PayloadError(where, expected[at : at + size].hex(), "that of its bytes")

    def verify_layer_run(self, head: memoryview, layer: int, heads: Span, run: memoryview) -> None:
        """As `verify_sections`, for the bytes of one `layer_run`; `head` is this head's bytes."""
        wanted = heads.within(self.first_head, self.heads)
        first = HEADER.size + ROW.itemsize * (layer * self.heads + wanted.start - self.first_head)
        at = 0
        for _, length, digest in ROW_STRUCT.iter_unpack(
            head[first : first + ROW.itemsize * len(wanted)]
        ):
            if xxhash.xxh3_128_digest(run[at : at + length]) != digest:
                raise PayloadError(f"a digest of layer {layer}", digest.hex(), "that of the bytes")
            at += length


def covers(first: int, count: int, wanted: Span) -> bool:
    """Whether [first, first + count) holds all that is wanted."""
    if wanted.count == 0:
        return True
    return first <= wanted.first and wanted.first + wanted.count <= first + count


def head_length_in(payload: memoryview) -> int:
    """How many bytes the head of this payload takes. Raises PayloadError."""
    return _read_header(payload).head_length


def head_checksum(head: memoryview) -> bytes:
    """XXH3-128 of the head with its own checksum field zeroed."""
    state = xxhash.xxh3_128(head[:CHECKSUM_AT])
    state.update(bytes(HEADER.size - CHECKSUM_AT))
    state.update(head[HEADER.size :])
    return state.digest()


def verify_payload(payload: memoryview, chain_hash: ChainHash) -> PayloadHead:
    """Checks that `payload` is wholly and exactly the block `chain_hash`, to the last byte."""
    head = PayloadHead.read(payload)
    if head.chain_hash != chain_hash:
        raise PayloadError("chain hash", head.chain_hash.hex(), chain_hash.hex())
    if head.payload_length != len(payload):
        raise PayloadError("payload length", head.payload_length, len(payload))
    head.verify_sections(payload)
    return head


class _Header(NamedTuple):
    magic: bytes
    version: int
    codec: int
    kv_dtype: int
    form: int
    tokens: int
    sinks: int
    layers: int
    first_head: int
    heads: int
    head_dim: int
    compute_ms: float
    preamble_length: int
    root_hash: bytes
    chain_hash: bytes
    codec_digest: bytes
    profile_digest: bytes
    payload_length: int
    first_token: int
    head_checksum: bytes

    @property
    def head_length(self) -> int:
        """Bytes of header, section table and the zeros that align it, and preamble."""
        table_end = HEADER.size + ROW.itemsize * self.layers * self.heads
        return -(-table_end // ALIGN) * ALIGN + self.preamble_length


def _read_header(payload: memoryview) -> _Header:
    _within("payload bytes", len(payload), HEADER.size, None)
    header = _Header._make(HEADER.unpack_from(payload))
    if header.magic != MAGIC:
        raise PayloadError("magic", header.magic, MAGIC)
    _within("format version", header.version, VERSION, VERSION)
    _within("codec", header.codec, 1, MAX_CODEC)
    _within("KV dtype", header.kv_dtype, 0, MAX_DTYPE)
    _within("tokens", header.tokens, 1, MAX_TOKENS)
    _within("sinks", header.sinks, 0, header.tokens)
    _within("layers", header.layers, 1, None)
    _within("heads", header.heads, 1, None)
    _within("head_dim", header.head_dim, 4, MAX_HEAD_DIM)
    if header.head_dim % 4:
        raise PayloadError("head_dim", header.head_dim, "a multiple of 4")
    _within("compute_ms", header.compute_ms, 0, MAX_COMPUTE_MS)
    _check_form(header)
    return header


def _check_form(header: _Header) -> None:
    # a payload of values has no codes to code
    _within("form", header.form, RESIDENT, RESIDENT if header.codec == RAW_CODEC else COLD)
    most = PREAMBLE_BYTES + PREAMBLE_SECTION_BYTES * header.layers * header.heads
    _within("preamble length", header.preamble_length, 0, most if header.form == COLD else 0)
    if header.preamble_length % ALIGN:
        raise PayloadError("preamble length", header.preamble_length, "whole 16s")


def _section_bounds(payload: memoryview, header: _Header, head_length: int) -> Bounds:
    rows = header.layers * header.heads
    # by ufuncs alone: NumPy's functions around them cost more than the work on a few hundred rows
    table = np.frombuffer(payload, "<u4", ROW_WORDS * rows, HEADER.size).reshape(-1, ROW_WORDS)
    offsets, lengths = table[:, 0], table[:, 1]
    ends = np.empty(rows + 1, np.int64)
    ends[0] = head_length
    np.add.accumulate(lengths, out=ends[1:])
    ends[1:] += head_length
    if np.bitwise_or.reduce(lengths) % ALIGN:
        raise PayloadError("a section length", int(lengths[lengths % ALIGN != 0][0]), "whole 16s")
    bounds = ends.astype(np.uint32)
    if offsets.tobytes() != bounds[:-1].tobytes() or ends[-1] != header.payload_length:
        _complain_of(offsets, ends, header.payload_length)
    return bounds


def _complain_of(offsets: Bounds, ends: npt.NDArray[np.int64], payload_length: int) -> NoReturn:
    wrong = np.flatnonzero(offsets != ends[:-1])
    if len(wrong):
        row = int(wrong[0])
        raise PayloadError(f"offset of section {row}", int(offsets[row]), int(ends[row]))
    raise PayloadError("end of the last section", int(ends[-1]), payload_length)


def _within(what: str, value: float, low: int, high: float | None) -> None:
    # said so that NaN is not within
    if not (low <= value and (high is None or value <= high)):
        raise PayloadError(what, value, f"{low} to {high}" if high is not None else f">= {low}")
