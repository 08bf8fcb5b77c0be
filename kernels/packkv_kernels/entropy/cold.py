"""Cold coding: the same integers as in a payload, in fewer bytes, for the wire and for disk.

A cold payload is a payload like others: header, section table, sections and checksums, and before
the sections a preamble (`cold_head`). So stores and paths treat both forms alike. Lossless to the
byte: the preamble has the checksum of the resident head, which covers the digests of all sections,
so a payload that comes back is the payload that went in, or an error.
"""

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.backend import run_parallel
from packkv_kernels.config import BLOCK_TOKENS, CodecId
from packkv_kernels.entropy.cold_encode import (
    MARGIN_WORDS,
    encode_sections,
    read_sections,
    share_scales,
)
from packkv_kernels.entropy.cold_head import ColdHead, lane_type, write_preamble
from packkv_kernels.entropy.cold_side import LANES
from packkv_kernels.entropy.decoding import DecodeSections
from packkv_kernels.entropy.section_heads import HEAD_ROOM, write_heads
from packkv_kernels.entropy.tables import build_tables, encode_tables, new_counts, tables_bytes
from packkv_kernels.format import Form, Payload, describe_sections, write_payload
from packkv_kernels.format.tile import WORDS
from packkv_kernels.format.validate import section_words

__all__ = ["decode_cold", "from_cold", "to_cold"]


def to_cold(payload: Payload, threads: int | None = None) -> bytes | bytearray:
    """The cold form of a payload: never longer, and the payload itself where nothing is gained.

    Args:
        payload: in any form.
        threads: at most so many; None: as many as torch takes.

    Raises:
        PayloadError: reason "section": a section is not sound.
    """
    header = payload.header
    if header.codec is CodecId.RAW or header.form is Form.COLD:
        return bytes(payload.data)
    preamble, sections = _code(payload, threads)
    cold = replace(header, form=Form.COLD, preamble_bytes=len(preamble))
    length = cold.head_length + sum(section.nbytes for section in sections)
    if length >= len(payload.data):
        return bytes(payload.data)
    return write_payload(cold, sections, preamble)


def from_cold(payload: Payload, threads: int | None = None) -> Payload:
    """The resident payload whose cold form `payload` is, byte for byte; itself if it is resident.

    Untrusted bytes are safe: nothing is read or written out of bounds, and no memory is taken for
    sections before all their heads are proven and add up to the length of the resident payload,
    whose checksums hold.

    Args:
        payload: in any form.
        threads: at most so many; None: as many as torch takes.

    Raises:
        PayloadError: no payload comes back, or another one than was made cold.
    """
    if payload.header.form is Form.RESIDENT:
        return payload
    return decode_cold(payload, partial(ColdHead.decode, threads=threads))


def decode_cold(payload: Payload, decode: DecodeSections) -> Payload:
    """As `from_cold`, of a payload in cold form, with a decoder of its sections.

    Raises:
        PayloadError: no payload comes back, or another one than was made cold.
    """
    head = ColdHead.of(payload)
    words = np.zeros(head.payload_length // 4, np.uint32)
    decode(head, payload.data, words)
    return head.finish(words)


def _code(payload: Payload, threads: int | None) -> tuple[bytes, list[memoryview]]:
    """Preamble and sections."""
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

    run_parallel(read, count, threads)
    share_scales(words, bases, descriptors, header.heads, shared)
    lengths = [build_tables(np.sum([part[s] for part in counted], 0), s) for s in range(2)]
    tables = encode_tables(lengths[0]), encode_tables(lengths[1])
    arena = np.empty((count, int(descriptors[:, WORDS].max()) + MARGIN_WORDS), np.uint32)
    sizes, lanes = np.empty(count, np.int64), np.empty((count, LANES), np.uint32)
    longest_lane = int(np.iinfo(lane_type(header)).max)

    def encode(start: int, stop: int) -> None:
        where = start, stop, words, bases, descriptors
        limits = tables[0], tables[1], longest_lane
        encode_sections(*where, classes, marks, coded, shared, *limits, arena, sizes, lanes)

    run_parallel(encode, count, threads)
    heads = np.zeros(count * HEAD_ROOM, np.uint32)
    bits = write_heads(words, bases, descriptors, coded, shared, *tables, heads)
    parts = [tables_bytes(side, s) for s, side in enumerate(lengths)]
    parts += [lanes.astype(lane_type(header)).tobytes(), heads[: -(-bits // 32)].tobytes()]
    sections = [row[:size].data.cast("B") for row, size in zip(arena, sizes, strict=True)]
    return write_preamble(payload, parts), sections
