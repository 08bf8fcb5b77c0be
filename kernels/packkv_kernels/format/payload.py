"""Payload: a block as it is stored and sent; written once, checked whole before it is believed.

    0              192               head_length                          payload_length
    ┌──────────────┬─────────────────┬───────────┬───────────┬─────┬───────────┐
    │ header       │ section table   │ section   │ section   │ ... │ section   │
    └──────────────┴─────────────────┴───────────┴───────────┴─────┴───────────┘
     └── covered by head_checksum ──┘ └─ each covered by its digest in the table

Every field is in docs/codec.md.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from packkv_kernels.config import BLOCK_TOKENS, MAX_HEAD_DIM, CacheShape, CodecId
from packkv_kernels.errors import InvalidInput, PayloadError

__all__ = ["Expectation", "KVDtype", "Payload", "PayloadHeader", "read_payload", "write_payload"]

MAGIC = b"PackKV\r\n"
VERSION = 1
HEADER_BYTES = 192
ALIGNMENT = 16
MAX_PAYLOAD_BYTES = 2**32 - 1

# magic, version, codec, kv_dtype, zero, tokens, sinks, layers, first_head, heads, head_dim, zeros,
# root hash, chain hash, codec digest, profile digest, payload length, first token, head checksum
_HEADER = struct.Struct("<8sHHBBHHHHHH6s32s32s32s32sQQ16s")
_CHECKSUM_AT = HEADER_BYTES - 16
_ROW = np.dtype([("offset", "<u4"), ("length", "<u4"), ("digest", "V16")])


class KVDtype(IntEnum):
    """What the model computes K and V in; the header's `kv_dtype`."""

    FLOAT16 = 0
    BFLOAT16 = 1
    FLOAT32 = 2

    @property
    def itemsize(self) -> int:
        return 4 if self is KVDtype.FLOAT32 else 2


@dataclass(frozen=True)
class PayloadHeader:
    """What a payload says of itself. Lengths and checksums follow from it and the sections."""

    codec: CodecId
    kv_dtype: KVDtype
    tokens: int
    sinks: int
    layers: int
    first_head: int
    heads: int
    head_dim: int
    root_hash: bytes
    chain_hash: bytes
    codec_digest: bytes
    profile_digest: bytes
    first_token: int

    @property
    def shape(self) -> CacheShape:
        return CacheShape(self.layers, self.heads, self.head_dim)

    @property
    def section_count(self) -> int:
        return self.layers * self.heads

    @property
    def head_length(self) -> int:
        return _head_length(self.section_count)


@dataclass(frozen=True)
class Expectation:
    """What a reader asked for. A field that is None is not checked."""

    codec: CodecId | None = None
    kv_dtype: KVDtype | None = None
    tokens: int | None = None
    sinks: int | None = None
    shape: CacheShape | None = None
    first_head: int | None = None
    root_hash: bytes | None = None
    chain_hash: bytes | None = None
    codec_digest: bytes | None = None
    profile_digest: bytes | None = None
    first_token: int | None = None


@dataclass(frozen=True)
class Payload:
    """A payload whose checksums and layout are proven; a view, nothing is copied.

    Attributes:
        header: the fields of the header.
        data: all bytes, read-only.
        sections: int64 [layers · heads, 2], (offset, length) of each section in `data`.
    """

    header: PayloadHeader
    data: memoryview
    sections: NDArray[np.int64]

    def section(self, layer: int, head: int) -> memoryview:
        """The bytes of one layer and KV head; `head` counts from the payload's first."""
        offset, length = self.sections[layer * self.header.heads + head].tolist()
        return self.data[offset : offset + length]


def write_payload(header: PayloadHeader, sections: Sequence[bytes | memoryview]) -> bytearray:
    """Puts header, table, sections and checksums together.

    Args:
        header: what the payload is.
        sections: layers · heads sections, layer-major, each of a multiple of 16 bytes.

    Raises:
        InvalidInput: a field beyond its limits, or sections that are too few, many or long.
    """
    wrong = _broken_limit(header)
    if wrong:
        raise InvalidInput(wrong)
    table = _table_of(header, sections)
    end = header.head_length + int(table["length"].sum(dtype=np.int64))
    if end > MAX_PAYLOAD_BYTES:
        raise InvalidInput(f"payload of {end} bytes exceeds {MAX_PAYLOAD_BYTES}")
    head = bytearray(header.head_length)
    _HEADER.pack_into(head, 0, *_header_values(header, end))
    head[HEADER_BYTES : HEADER_BYTES + table.nbytes] = table.tobytes()
    head[_CHECKSUM_AT:HEADER_BYTES] = xxhash.xxh3_128_digest(head)
    return bytearray().join((head, *sections))


def read_payload(
    data: bytes | bytearray | memoryview, expect: Expectation | None = None
) -> Payload:
    """Believes `data` only when every checksum, limit and expectation holds.

    Raises:
        PayloadError: the first thing that does not hold.
    """
    view = memoryview(data).cast("B").toreadonly()
    header, length = _read_header(view)
    _check_length(view, header, length)
    _check_head(view, header.head_length)
    table = np.frombuffer(view, _ROW, header.section_count, HEADER_BYTES)
    sections = np.empty((len(table), 2), np.int64)
    sections[:, 0] = table["offset"]
    sections[:, 1] = table["length"]
    _check_table(view, header, sections)
    _check_identity(header, expect or Expectation())
    _check_sections(view, table, sections)
    return Payload(header, view, sections)


def _head_length(sections: int) -> int:
    return _round_up(HEADER_BYTES + _ROW.itemsize * sections)


def _round_up(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def _table_of(header: PayloadHeader, sections: Sequence[bytes | memoryview]) -> NDArray[Any]:
    if len(sections) != header.section_count:
        raise InvalidInput(f"{len(sections)} sections, but the header has {header.section_count}")
    table = np.zeros(len(sections), _ROW)
    lengths = np.array([len(section) for section in sections], np.int64)
    if (lengths % ALIGNMENT != 0).any() or (lengths == 0).any():
        raise InvalidInput(f"a section's length is not a positive multiple of {ALIGNMENT} bytes")
    table["length"] = lengths
    table["offset"] = header.head_length + np.cumsum(lengths) - lengths
    digests = b"".join(xxhash.xxh3_128_digest(section) for section in sections)
    table["digest"] = np.frombuffer(digests, "V16")
    return table


def _header_values(header: PayloadHeader, payload_length: int) -> tuple[Any, ...]:
    return (
        *(MAGIC, VERSION, header.codec, header.kv_dtype, 0, header.tokens, header.sinks),
        *(header.layers, header.first_head, header.heads, header.head_dim, bytes(6)),
        *(header.root_hash, header.chain_hash, header.codec_digest, header.profile_digest),
        *(payload_length, header.first_token, bytes(16)),
    )


def _broken_limit(header: PayloadHeader) -> str | None:
    """The first limit that a header's fields break, in words."""
    limits = {
        "tokens": (1, BLOCK_TOKENS),
        "sinks": (0, header.tokens),
        "layers": (1, 65_535),
        "first_head": (0, 65_535),
        "heads": (1, 65_535),
        "head_dim": (4, MAX_HEAD_DIM),
        "first_token": (0, 2**64 - 1),
    }
    for name, (low, high) in limits.items():
        value = getattr(header, name)
        if not low <= value <= high:
            return f"{name} {value} is outside {low} … {high}"
    if header.head_dim % 4:
        return f"head_dim {header.head_dim} is not a multiple of 4"
    if header.codec is CodecId.RAW and header.sinks:
        return f"sinks {header.sinks} in a raw payload, which has none"
    for name in ("root_hash", "chain_hash", "codec_digest", "profile_digest"):
        if len(getattr(header, name)) != 32:
            return f"{name} has {len(getattr(header, name))} bytes, not 32"
    return None


def _read_header(view: memoryview) -> tuple[PayloadHeader, int]:
    if len(view) < HEADER_BYTES:
        raise PayloadError("truncated", f"{len(view)} bytes, a header has {HEADER_BYTES}")
    values = _HEADER.unpack_from(view)
    magic, version, codec, kv_dtype, zero, *extents, zeros = values[:12]
    *hashes, length, first_token, _ = values[12:]
    if magic != MAGIC:
        raise PayloadError("magic", f"magic {magic!r} is not {MAGIC!r}")
    if version != VERSION:
        raise PayloadError("version", f"version {version} is not {VERSION}")
    if zero or any(zeros):
        raise PayloadError("layout", "reserved bytes of the header are not 0")
    try:
        known_codec, known_dtype = CodecId(codec), KVDtype(kv_dtype)
    except ValueError as error:
        raise PayloadError("layout", f"codec {codec}, kv_dtype {kv_dtype}: {error}") from None
    header = PayloadHeader(known_codec, known_dtype, *(*extents, *hashes, first_token))
    wrong = _broken_limit(header)
    if wrong:
        raise PayloadError("layout", wrong)
    return header, length


def _check_length(view: memoryview, header: PayloadHeader, length: int) -> None:
    if length > MAX_PAYLOAD_BYTES or length < header.head_length:
        raise PayloadError(
            "layout",
            f"payload_length {length} is outside {header.head_length} … {MAX_PAYLOAD_BYTES}",
        )
    if len(view) < length:
        raise PayloadError("truncated", f"{len(view)} bytes of {length}")
    if len(view) > length:
        raise PayloadError("layout", f"{len(view)} bytes, but payload_length is {length}")


def _check_head(view: memoryview, head_length: int) -> None:
    digest = xxhash.xxh3_128(view[:_CHECKSUM_AT])
    digest.update(bytes(16))
    digest.update(view[HEADER_BYTES:head_length])
    if digest.digest() != view[_CHECKSUM_AT:HEADER_BYTES]:
        raise PayloadError("checksum", f"head checksum is not {digest.hexdigest()}")


def _check_table(view: memoryview, header: PayloadHeader, sections: NDArray[np.int64]) -> None:
    offsets, lengths = sections[:, 0], sections[:, 1]
    if (lengths % ALIGNMENT != 0).any() or (lengths == 0).any():
        raise PayloadError("layout", f"a section is not a positive multiple of {ALIGNMENT} bytes")
    ends = header.head_length + np.cumsum(lengths)
    if (offsets != ends - lengths).any():
        raise PayloadError("layout", "sections do not follow each other from the end of the table")
    if ends[-1] != len(view):
        raise PayloadError("layout", f"sections end at {ends[-1]}, the payload at {len(view)}")
    if any(view[HEADER_BYTES + _ROW.itemsize * len(sections) : header.head_length]):
        raise PayloadError("layout", "padding of the section table is not 0")


def _check_identity(header: PayloadHeader, expect: Expectation) -> None:
    for field in fields(expect):
        wanted, found = getattr(expect, field.name), getattr(header, field.name)
        if wanted is not None and wanted != found:
            raise PayloadError("identity", f"{field.name} is {_spell(found)}, not {_spell(wanted)}")


def _spell(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)


def _check_sections(view: memoryview, table: NDArray[Any], sections: NDArray[np.int64]) -> None:
    digest = xxhash.xxh3_128_digest
    found = b"".join(
        [digest(view[offset : offset + length]) for offset, length in sections.tolist()]
    )
    if found != table["digest"].tobytes():
        changed = np.frombuffer(found, "V16") != table["digest"]
        raise PayloadError("checksum", f"section {int(np.argmax(changed))} differs from its digest")
