"""Cold coding: the same integers as in a payload, in fewer bytes, for the wire and for disk.

    0           16               208               4 · sections later
    ┌───────────┬────────────────┬─────────────────┬───────────┬───────────┬───────────┬─────┐
    │ cold head │ the payload's  │ size of each    │ tables of │ tables of │ section 0 │ ... │
    │ 16 bytes  │ header, as is  │ section, u32    │ K         │ V         │           │     │
    └───────────┴────────────────┴─────────────────┴───────────┴───────────┴───────────┴─────┘

Lossless to the byte: the header's own checksum covers the digests of all sections, so a payload
that comes back is the payload that went in, or an error. Every field is in docs/codec.md.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.backend import run_parallel
from packkv_kernels.config import BLOCK_TOKENS, CodecId
from packkv_kernels.entropy.cold_decode import decode_sections, prove_heads
from packkv_kernels.entropy.cold_encode import MARGIN_WORDS, encode_sections, read_sections
from packkv_kernels.entropy.cold_lanes import SLACK_WORDS
from packkv_kernels.entropy.tables import (
    SideTables,
    build_tables,
    decode_tables,
    encode_tables,
    new_tables,
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
VERSION = 1

_HEAD = struct.Struct("<8sHHI")  # magic, version, zero, length of all
_SIZE = np.uint32((1 << 30) - 1)


def to_cold(payload: Payload) -> bytes:
    """The cold form of a payload: never longer, and the payload itself where nothing is gained.

    Raises:
        PayloadError: reason "section": a section is not sound.
    """
    header = payload.header
    if header.codec is CodecId.RAW:
        return bytes(payload.data)
    arena, sizes, tables = _code_sections(payload)
    sections = [row[: size & _SIZE] for row, size in zip(arena, sizes, strict=True)]
    parts = [payload.data[:HEADER_BYTES], sizes.tobytes(), *tables, *sections]
    length = _HEAD.size + sum(memoryview(part).nbytes for part in parts)
    if length >= len(payload.data):
        return bytes(payload.data)
    return b"".join([_HEAD.pack(MAGIC, VERSION, 0, length), *parts])


def from_cold(data: bytes | bytearray | memoryview) -> bytearray:
    """The payload whose cold form `data` is, byte for byte.

    Untrusted bytes are safe: nothing is read or written out of bounds, and no memory is taken
    before the heads of all sections are proven. The payload's checksums hold.

    Raises:
        PayloadError: no payload comes back, or one that differs from what its header says.
    """
    view = memoryview(data).cast("B").toreadonly()
    if view[:8] != MAGIC:
        return bytearray(read_payload(view).data)
    header = _read_head(view)
    sizes_end = _HEAD.size + HEADER_BYTES + 4 * header.section_count
    if sizes_end > len(view):
        raise PayloadError("truncated", f"{len(view)} bytes end before the sizes at {sizes_end}")
    sizes = np.frombuffer(view[_HEAD.size + HEADER_BYTES : sizes_end], "<u4")
    k_lengths, k_bytes = read_tables(view[sizes_end:])
    v_lengths, v_bytes = read_tables(view[sizes_end + k_bytes :])
    sections = _expand(header, sizes, (k_lengths, v_lengths), view[sizes_end + k_bytes + v_bytes :])
    payload = write_payload(header, sections)
    if payload[:HEADER_BYTES] != view[_HEAD.size : _HEAD.size + HEADER_BYTES]:
        raise PayloadError("checksum", "what came back is not the payload that went in")
    return payload


def _code_sections(
    payload: Payload,
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], list[bytes]]:
    """Cold sections in rows, their sizes, and the tables of K and V as bytes."""
    header, descriptors = payload.header, describe_sections(payload)
    words = section_words(payload)
    bases = (payload.sections[:, 0] - header.head_length) // 4
    count = header.section_count
    codes = np.empty((count, 2, header.head_dim, BLOCK_TOKENS), np.uint8)
    has_codes = np.empty((count, 2), np.bool_)
    counted: list[tuple[SideTables, SideTables]] = []

    def read(start: int, stop: int) -> None:
        counts = new_tables(), new_tables()
        read_sections(start, stop, words, bases, descriptors, codes, has_codes, *counts)
        counted.append(counts)

    run_parallel(read, count)
    lengths = [_fitting([counts[side] for counts in counted]) for side in range(2)]
    tables = [encode_tables(side) for side in lengths]
    arena = np.empty((count, int(descriptors[:, WORDS].max()) + MARGIN_WORDS), np.uint32)
    sizes = np.empty(count, np.uint32)

    def encode(start: int, stop: int) -> None:
        packed = (words, bases, descriptors, codes, has_codes)
        encode_sections(start, stop, *packed, tables[0], tables[1], arena, sizes)

    run_parallel(encode, count)
    return arena, sizes, [tables_bytes(side) for side in lengths]


def _fitting(counted: list[SideTables]) -> SideTables:
    """Lengths that fit what all threads counted on one side."""
    counts = SideTables(*(sum(arrays) for arrays in zip(*counted, strict=True)))
    lengths = new_tables()
    build_tables(counts, lengths)
    return lengths


def _read_head(view: memoryview) -> PayloadHeader:
    if len(view) < _HEAD.size + HEADER_BYTES:
        raise PayloadError("truncated", f"{len(view)} bytes, a cold head has more")
    _, version, zero, length = _HEAD.unpack_from(view)
    if version != VERSION or zero:
        raise PayloadError("version", f"cold version {version} is not {VERSION}")
    if length != len(view):
        raise PayloadError("truncated", f"{len(view)} bytes, not {length}")
    header, _ = unpack_header(view[_HEAD.size :])
    if header.codec is CodecId.RAW:
        raise PayloadError("layout", "a raw payload has no cold form of its own")
    return header


def _expand(
    header: PayloadHeader,
    sizes: NDArray[np.uint32],
    lengths: tuple[SideTables, SideTables],
    data: memoryview,
) -> list[memoryview]:
    """The sections of a payload from their cold words."""
    ends = np.cumsum(sizes & _SIZE, dtype=np.int64)
    if 4 * ends[-1] != len(data):
        raise PayloadError("layout", f"sections end at {4 * ends[-1]}, the bytes at {len(data)}")
    starts = ends - (sizes & _SIZE)
    cold = np.zeros(ends[-1] + SLACK_WORDS, np.uint32)
    cold[: ends[-1]] = np.frombuffer(data, "<u4")
    descriptors = _descriptors(header, cold, starts, sizes)
    section_ends = np.cumsum(descriptors[:, WORDS], dtype=np.int64)
    if 4 * section_ends[-1] > MAX_PAYLOAD_BYTES:
        raise PayloadError("layout", f"sections of {4 * section_ends[-1]} bytes")
    bases = section_ends - descriptors[:, WORDS]
    words = np.zeros(section_ends[-1], np.uint32)
    tables = decode_tables(lengths[0]), decode_tables(lengths[1])
    faults: list[int] = []

    def work(start: int, stop: int) -> None:
        packed = (cold, starts, sizes, descriptors, tables, words, bases)
        faults.append(decode_sections(start, stop, *packed))

    run_parallel(work, len(sizes))
    if max(faults) >= 0:
        raise PayloadError("section", f"cold section {max(faults)} does not add up")
    whole = words.data.cast("B")
    return [whole[4 * a : 4 * b] for a, b in zip(bases, section_ends, strict=True)]


def _descriptors(
    header: PayloadHeader,
    cold: NDArray[np.uint32],
    starts: NDArray[np.int64],
    sizes: NDArray[np.uint32],
) -> NDArray[np.int32]:
    descriptors = np.empty((len(sizes), DESCRIPTOR_WORDS), np.int32)
    extent = np.array([header.tokens, header.sinks, header.head_dim], np.int32)
    fault, section = prove_heads(cold, starts, sizes, int(header.codec), extent, descriptors)
    if fault:
        raise PayloadError("section", f"cold section {section}: {FAULTS[fault]}")
    return descriptors
