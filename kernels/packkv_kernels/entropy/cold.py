"""Cold coding: the same integers as in a payload, in fewer bytes, for the wire and for disk.

    0           16               208
    ┌───────────┬────────────────┬───────────┬───────────┬─────────────────┬───────┬───────────┬─
    │ cold head │ the payload's  │ tables of │ tables of │ bits of each    │ heads │ section 0 │
    │ 16 bytes  │ header, as is  │ K         │ V         │ section's lanes │       │           │
    └───────────┴────────────────┴───────────┴───────────┴─────────────────┴───────┴───────────┴─

Lossless to the byte: the header's own checksum covers the digests of all sections, so a payload
that comes back is the payload that went in, or an error. Every field is in docs/codec.md.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.backend import run_parallel
from packkv_kernels.config import BLOCK_TOKENS, CodecId
from packkv_kernels.entropy.cold_decode import (
    PART_WORDS,
    decode_sections,
    place_sections,
    prove_heads,
)
from packkv_kernels.entropy.cold_encode import (
    MARGIN_WORDS,
    encode_sections,
    read_sections,
    share_scales,
)
from packkv_kernels.entropy.cold_heads import HEAD_ROOM, write_heads
from packkv_kernels.entropy.cold_lanes import SLACK_WORDS
from packkv_kernels.entropy.cold_side import LANES
from packkv_kernels.entropy.tables import (
    build_tables,
    decode_tables,
    encode_tables,
    new_counts,
    read_tables,
    tables_bytes,
)
from packkv_kernels.errors import PayloadError
from packkv_kernels.format import (
    Payload,
    PayloadHeader,
    describe_sections,
    read_payload,
    write_payload,
)
from packkv_kernels.format.header import HEADER_BYTES, MAX_PAYLOAD_BYTES, unpack_header
from packkv_kernels.format.proof import FAULTS
from packkv_kernels.format.tile import DESCRIPTOR_WORDS, WORDS
from packkv_kernels.format.validate import section_words

__all__ = ["from_cold", "to_cold"]

MAGIC = b"PackKVC\n"
VERSION = 2

_HEAD = struct.Struct("<8sHHI")  # magic, version, zero, length of all


def to_cold(payload: Payload) -> bytes:
    """The cold form of a payload: never longer, and the payload itself where nothing is gained.

    Raises:
        PayloadError: reason "section": a section is not sound.
    """
    header = payload.header
    if header.codec is CodecId.RAW:
        return bytes(payload.data)
    parts = [payload.data[:HEADER_BYTES], *_code_sections(payload)]
    length = _HEAD.size + sum(part.nbytes for part in parts)
    if length >= len(payload.data):
        return bytes(payload.data)
    return b"".join([_HEAD.pack(MAGIC, VERSION, 0, length), *parts])


def from_cold(data: bytes | bytearray | memoryview) -> bytearray:
    """The payload whose cold form `data` is, byte for byte.

    Untrusted bytes are safe: nothing is read or written out of bounds, and no memory is taken for
    sections before all their heads are proven and add up to the length in the header. The
    payload's checksums hold.

    Raises:
        PayloadError: no payload comes back, or one that differs from what its header says.
    """
    view = memoryview(data).cast("B").toreadonly()
    if view[:8] != MAGIC:
        return bytearray(read_payload(view).data)
    header, length = _read_head(view)
    at = _HEAD.size + HEADER_BYTES
    k_lengths, taken = read_tables(view[at:], 0)
    at += taken
    v_lengths, taken = read_tables(view[at:], 1)
    at += taken
    lanes, taken = _read_lanes(view[at:], header)
    tables = decode_tables(k_lengths, 0), decode_tables(v_lengths, 1)
    sections = _expand(header, length, lanes, tables, view[at + taken :])
    payload = write_payload(header, sections)
    if payload[:HEADER_BYTES] != view[_HEAD.size : _HEAD.size + HEADER_BYTES]:
        raise PayloadError("checksum", "what came back is not the payload that went in")
    return payload


def _code_sections(payload: Payload) -> list[memoryview]:
    """Tables of K and V, bits of lanes, heads and sections."""
    header, descriptors = payload.header, describe_sections(payload)
    bases = (payload.sections[:, 0] - header.head_length) // 4
    words = section_words(payload)
    count = header.section_count
    classes = np.empty((count, 2, header.head_dim), np.uint8)
    marks = np.empty((count, 2, header.head_dim, BLOCK_TOKENS), np.uint32)
    coded, shared = np.empty((2, count, 2), np.bool_)
    counted: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def read(start: int, stop: int) -> None:
        counts = new_counts(), new_counts()
        read_sections(start, stop, words, bases, descriptors, classes, marks, coded, *counts)
        counted.append(counts)

    run_parallel(read, count)
    share_scales(words, bases, descriptors, shared)
    lengths = [build_tables(np.sum([part[s] for part in counted], 0), s) for s in range(2)]
    tables = encode_tables(lengths[0]), encode_tables(lengths[1])
    arena = np.empty((count, int(descriptors[:, WORDS].max()) + MARGIN_WORDS), np.uint32)
    sizes, lanes = np.empty(count, np.int64), np.empty((count, LANES), np.uint32)
    lane_type = _lane_type(header)
    longest_lane = int(np.iinfo(lane_type).max)

    def encode(start: int, stop: int) -> None:
        where = start, stop, words, bases, descriptors
        limits = tables[0], tables[1], longest_lane
        encode_sections(*where, classes, marks, coded, shared, *limits, arena, sizes, lanes)

    run_parallel(encode, count)
    heads = np.zeros(count * HEAD_ROOM, np.uint32)
    bits = write_heads(words, bases, descriptors, coded, shared, *tables, heads)
    return [
        *(memoryview(tables_bytes(side, s)) for s, side in enumerate(lengths)),
        memoryview(lanes.astype(lane_type).tobytes()),
        heads[: -(-bits // 32)].data,
        *(row[:size].data for row, size in zip(arena, sizes, strict=True)),
    ]


def _lane_type(header: PayloadHeader) -> np.dtype[np.unsignedinteger]:
    """What the bits of a lane are written as."""
    return np.dtype("<u2" if header.head_dim <= 256 else "<u4")


def _read_head(view: memoryview) -> tuple[PayloadHeader, int]:
    """The payload's header, and its length by what that says."""
    if len(view) < _HEAD.size + HEADER_BYTES:
        raise PayloadError("truncated", f"{len(view)} bytes, a cold head has more")
    _, version, zero, length = _HEAD.unpack_from(view)
    if version != VERSION or zero:
        raise PayloadError("version", f"cold version {version} is not {VERSION}")
    if length != len(view):
        raise PayloadError("truncated", f"{len(view)} bytes, not {length}")
    header, payload_length = unpack_header(view[_HEAD.size :])
    if header.codec is CodecId.RAW:
        raise PayloadError("layout", "a raw payload has no cold form of its own")
    if payload_length > MAX_PAYLOAD_BYTES:
        raise PayloadError("layout", f"payload_length {payload_length} > {MAX_PAYLOAD_BYTES}")
    return header, payload_length


def _read_lanes(view: memoryview, header: PayloadHeader) -> tuple[NDArray[np.int64], int]:
    """Bits of each lane, [sections, LANES], and how many bytes say them."""
    kind = _lane_type(header)
    taken = kind.itemsize * LANES * header.section_count
    if taken > len(view):
        raise PayloadError("truncated", f"{len(view)} bytes, but lanes alone take {taken}")
    lanes = np.frombuffer(view[:taken], kind).astype(np.int64)
    return lanes.reshape(-1, LANES), taken


def _expand(
    header: PayloadHeader,
    length: int,
    lanes: NDArray[np.int64],
    tables: tuple[NDArray[np.uint16], NDArray[np.uint16]],
    data: memoryview,
) -> list[memoryview]:
    """The sections of a payload of `length` bytes from their heads and cold words."""
    if len(data) % 4:
        raise PayloadError("layout", f"{len(data)} bytes of sections are no whole words")
    cold = np.zeros(len(data) // 4 + SLACK_WORDS, np.uint32)
    cold[: len(data) // 4] = np.frombuffer(data, "<u4")
    descriptors, parts = _place(header, cold, lanes, tables)
    section_ends = np.cumsum(descriptors[:, WORDS], dtype=np.int64)
    if header.head_length + 4 * section_ends[-1] != length:
        found = header.head_length + 4 * section_ends[-1]
        raise PayloadError("layout", f"sections end at {found}, the payload at {length}")
    bases = section_ends - descriptors[:, WORDS]
    words = np.zeros(section_ends[-1], np.uint32)
    faults: list[int] = []

    def work(start: int, stop: int) -> None:
        packed = cold, parts, lanes, descriptors
        faults.append(decode_sections(start, stop, *packed, *tables, words, bases))

    run_parallel(work, len(bases))
    if max(faults) >= 0:
        raise PayloadError("section", f"cold section {max(faults)} does not add up")
    whole = words.data.cast("B")
    return [whole[4 * a : 4 * b] for a, b in zip(bases, section_ends, strict=True)]


def _place(
    header: PayloadHeader,
    cold: NDArray[np.uint32],
    lanes: NDArray[np.int64],
    tables: tuple[NDArray[np.uint16], NDArray[np.uint16]],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Descriptors and parts of all sections, whose cold words end where `cold` does."""
    count, length = header.section_count, len(cold) - SLACK_WORDS
    descriptors = np.empty((count, DESCRIPTOR_WORDS), np.int32)
    parts = np.empty((count, PART_WORDS), np.int64)
    extent = np.array([header.tokens, header.sinks, header.head_dim], np.int32)
    fault, section, bits = prove_heads(
        cold, length, int(header.codec), extent, *tables, descriptors, parts
    )
    if fault:
        what = FAULTS[fault] if fault > 0 else "its head is cut off"
        raise PayloadError("section", f"cold section {section}: {what}")
    if place_sections(descriptors, lanes, -(-bits // 32), parts) != length:
        raise PayloadError("layout", f"cold sections do not add up to {4 * length} bytes")
    return descriptors, parts
