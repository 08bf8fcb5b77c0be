"""ColdHead: what the head of a cold payload says of the resident one, and how to get there.

The preamble of a cold payload, which its head checksum covers like everything else in its head:

    0                 8               24            32           …
    ┌─────────────────┬───────────────┬─────────────┬────────────┬───────────────┬───────────┐
    │ payload_length  │ head_checksum │ version,    │ code tables│ bits of each  │ heads of  │
    │ of the resident payload         │ zeros       │ of K, of V │ section's     │ sections  │
    │                 │               │             │            │ lanes         │           │
    └─────────────────┴───────────────┴─────────────┴────────────┴───────────────┴───────────┘

Every field is in docs/codec.md.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.backend import run_parallel
from packkv_kernels.entropy.cold_decode import (
    PART_WORDS,
    decode_sections,
    place_sections,
    prove_heads,
    shifted,
)
from packkv_kernels.entropy.cold_lanes import SLACK_WORDS
from packkv_kernels.entropy.cold_plan import PLAN_WORDS, ColdPlan, plan_sections, planned_words
from packkv_kernels.entropy.cold_side import LANES
from packkv_kernels.entropy.tables import decode_tables, read_tables
from packkv_kernels.errors import InvalidInput, PayloadError
from packkv_kernels.format import Form, Payload, PayloadHeader
from packkv_kernels.format.header import ALIGNMENT, CHECKSUM_AT, HEADER_BYTES, MAX_PAYLOAD_BYTES
from packkv_kernels.format.payload import write_head
from packkv_kernels.format.proof import FAULTS
from packkv_kernels.format.tile import DESCRIPTOR_WORDS, K_UNIT, WORDS, v_unit

__all__ = ["ColdHead", "lane_type", "write_preamble"]

VERSION = 3

# payload_length and head_checksum of the resident payload, version, zeros
_RESIDENT = struct.Struct("<Q16sH6s")

_Tables = tuple[NDArray[np.uint16], NDArray[np.uint16]]


def write_preamble(resident: Payload, parts: list[bytes]) -> bytes:
    """The preamble of a payload's cold form: tables of K and V, lanes and heads are its `parts`."""
    checksum = bytes(resident.data[CHECKSUM_AT:HEADER_BYTES])
    fixed = _RESIDENT.pack(len(resident.data), checksum, VERSION, bytes(6))
    preamble = b"".join([fixed, *parts])
    return preamble + bytes(-len(preamble) % ALIGNMENT)


def lane_type(header: PayloadHeader) -> np.dtype[np.unsignedinteger]:
    """What the bits of a lane are written as."""
    return np.dtype("<u2" if header.head_dim <= 256 else "<u4")


@dataclass(frozen=True, eq=False)
class ColdHead:
    """The head of a cold payload, proven: where each section goes, and all that decoding needs.

    Sections of one layer depend on each other and on nothing else, so a layer can be decoded as
    soon as it is there.

    Attributes:
        header: of the resident payload.
        payload_length: of the resident payload.
        sections: int64 [layers · heads, 2], (offset, length) of each in the resident payload.
        cold_sections: the same in the cold one.
    """

    header: PayloadHeader
    payload_length: int
    sections: NDArray[np.int64]
    cold_sections: NDArray[np.int64]
    _checksum: bytes
    _lengths: NDArray[np.uint8]
    _tables: _Tables
    _lanes: NDArray[np.int64]
    _heads: NDArray[np.uint32]
    _descriptors: NDArray[np.int32]
    _parts: NDArray[np.int64]

    @classmethod
    def of(cls, payload: Payload) -> Self:
        """The head of a cold payload, of which nothing but the head needs to be there.

        Untrusted bytes are safe: nothing is read out of bounds, and the memory taken is bounded by
        the length of the head.

        Args:
            payload: from `read_payload`, or `open_payload`.

        Raises:
            PayloadError: what the preamble says is impossible.
            InvalidInput: the payload is not in cold form.
        """
        cold, cold_sections = payload.header, payload.sections
        if cold.form is not Form.COLD:
            raise InvalidInput("the payload is resident, not cold")
        header = replace(cold, form=Form.RESIDENT, preamble_bytes=0)
        preamble = payload.data[cold.preamble_at : cold.head_length]
        length, checksum = _read_fixed(preamble)
        lengths, at = [], _RESIDENT.size
        for side in range(2):
            found, taken = read_tables(preamble[at:], side)
            lengths.append(found)
            at += taken
        tables = decode_tables(lengths[0], 0), decode_tables(lengths[1], 1)
        lanes, taken = _read_lanes(preamble[at:], header)
        heads = _padded(preamble[at + taken :])
        descriptors, parts = _place(header, heads, cold_sections, lanes, tables)
        sections = _resident_sections(header, descriptors, length)
        return cls(
            header=header,
            payload_length=length,
            sections=sections,
            cold_sections=cold_sections,
            _checksum=checksum,
            _lengths=np.stack(lengths),
            _tables=tables,
            _lanes=lanes,
            _heads=heads,
            _descriptors=descriptors,
            _parts=parts,
        )

    def decode(
        self,
        cold: memoryview,
        out: NDArray[np.uint32],
        layers: range | None = None,
        threads: int | None = None,
    ) -> None:
        """Decodes some layers into their places in the resident payload.

        Args:
            cold: the cold payload; only the sections of these layers are read, and their digests
                are the caller's to check. Whatever they are, nothing is written out of bounds.
            out: u32 words of the resident payload, zeros where these layers go.
            layers: one after the other; None: all.
            threads: at most so many; None: as many as torch takes.

        Raises:
            PayloadError: reason "section": bytes that no section has.
        """
        heads = self.header.heads
        chosen = range(self.header.layers) if layers is None else layers
        if not chosen:
            return
        rows = slice(chosen.start * heads, chosen.stop * heads)
        words, parts = self._cold_words(cold, rows)
        lanes, descriptors = self._lanes[rows], self._descriptors[rows]
        bases = self.sections[rows, 0] // 4
        faults: list[int] = []

        def work(start: int, stop: int) -> None:
            packed = words, self._heads, parts, lanes, descriptors
            faults.append(decode_sections(start, stop, *packed, *self._tables, out, bases))

        run_parallel(work, len(bases), threads)
        self.refuse([rows.start + fault for fault in faults if fault >= 0])

    def plan(self, cold: memoryview, layers: range | None = None) -> ColdPlan:
        """What a device needs to decode some layers as `decode` does.

        Args:
            cold: the cold payload; only the sections of these layers are read, and their digests
                are the caller's to check. Whatever they are, what is planned stays in bounds.
            layers: one after the other; None: all.

        Raises:
            PayloadError: reason "section": bytes that no section has. What is wrong with the bits
                of lanes alone is seen where they are decoded.
        """
        heads = self.header.heads
        chosen = range(self.header.layers) if layers is None else layers
        rows = slice(chosen.start * heads, chosen.stop * heads)
        words, parts = self._cold_words(cold, rows)
        count, head_dim = len(parts), self.header.head_dim
        units = head_dim // K_UNIT + head_dim // v_unit(head_dim)
        planned = np.empty(planned_words(len(words), count), np.uint32)
        plan = np.zeros((count, PLAN_WORDS), np.int64)
        starts = np.empty((count, LANES + 1), np.int32)
        widths = np.empty((count, units), np.uint8)
        descriptors = self._descriptors[rows]
        fault, section, end = plan_sections(
            words, self._heads, parts, self._lanes[rows], descriptors, *self._tables,
            int(self.header.codec), planned, plan, starts, widths,
        )  # fmt: skip
        if fault:
            what = FAULTS[fault] if fault > 0 else "does not add up"
            raise PayloadError("section", self._where(rows.start + section, what))
        bases = (self.sections[rows, 0] - self.sections[rows.start, 0]) // 4
        return ColdPlan(planned[:end], plan, starts, widths, bases, descriptors, self._lengths)

    def _cold_words(
        self, cold: memoryview, rows: slice
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The words of some sections, padded, and their parts, counted from the first of them."""
        begin, end = self.cold_sections[rows][0, 0], self.cold_sections[rows][-1].sum()
        words = _padded(cold[begin:end])
        return words, shifted(self._parts[rows], (begin - self.cold_sections[0, 0]) // 4)

    def finish(self, out: NDArray[np.uint32]) -> Payload:
        """The resident payload, when all layers have been decoded into `out`.

        Raises:
            PayloadError: reason "checksum": it is not the payload that was made cold.
        """
        data = out.data.cast("B")
        ends = self.sections.sum(1).tolist()
        starts = self.sections[:, 0].tolist()
        found = [data[start:end] for start, end in zip(starts, ends, strict=True)]
        head = write_head(self.header, found)
        if head[CHECKSUM_AT:HEADER_BYTES] != self._checksum:
            raise PayloadError("checksum", "what came back is not the payload that went in")
        data[: len(head)] = head
        return Payload(self.header, data.toreadonly(), self.sections)

    def refuse(self, sections: Sequence[int] | NDArray[np.int64]) -> None:
        """Raises PayloadError, reason "section", if there are any whose bits no section has."""
        if len(sections):
            raise PayloadError("section", self._where(int(max(sections)), "does not add up"))

    def _where(self, section: int, what: str) -> str:
        layer, head = divmod(section, self.header.heads)
        return f"cold section of layer {layer}, head {self.header.first_head + head} {what}"


def _read_fixed(preamble: memoryview) -> tuple[int, bytes]:
    """Length and head checksum of the resident payload."""
    if len(preamble) < _RESIDENT.size:
        raise PayloadError("layout", f"a preamble of {len(preamble)} bytes, not {_RESIDENT.size}")
    length, checksum, version, zeros = _RESIDENT.unpack_from(preamble)
    if version != VERSION or any(zeros):
        raise PayloadError("version", f"version {version} of cold coding is not {VERSION}")
    if length > MAX_PAYLOAD_BYTES:
        raise PayloadError("layout", f"payload_length {length} > {MAX_PAYLOAD_BYTES}")
    return length, checksum


def _read_lanes(view: memoryview, header: PayloadHeader) -> tuple[NDArray[np.int64], int]:
    """Bits of each lane, [sections, LANES], and how many bytes say them."""
    kind = lane_type(header)
    taken = kind.itemsize * LANES * header.section_count
    if taken > len(view):
        raise PayloadError("layout", f"{len(view)} bytes, but lanes alone take {taken}")
    lanes = np.frombuffer(view[:taken], kind).astype(np.int64)
    return lanes.reshape(-1, LANES), taken


def _padded(data: memoryview) -> NDArray[np.uint32]:
    """The words of `data`, and as many zeros as decoding may read beyond them."""
    words = np.zeros(len(data) // 4 + SLACK_WORDS, np.uint32)
    words[: len(data) // 4] = np.frombuffer(data, "<u4")
    return words


def _place(
    header: PayloadHeader,
    heads: NDArray[np.uint32],
    cold_sections: NDArray[np.int64],
    lanes: NDArray[np.int64],
    tables: _Tables,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Descriptors and parts of all sections; `heads` are padded."""
    count, length = header.section_count, len(heads) - SLACK_WORDS
    descriptors = np.empty((count, DESCRIPTOR_WORDS), np.int32)
    parts = np.empty((count, PART_WORDS), np.int64)
    extent = np.array([header.tokens, header.sinks, header.head_dim], np.int32)
    fault, section, bits = prove_heads(
        heads, length, int(header.codec), extent, *tables, descriptors, parts
    )
    if fault:
        what = FAULTS[fault] if fault > 0 else "its head is cut off"
        raise PayloadError("section", f"cold section {section}: {what}")
    # zeros fill the preamble, less than 16 bytes of them
    if 4 * (length - -(-bits // 32)) >= ALIGNMENT or heads[-(-bits // 32) : length].any():
        raise PayloadError("layout", "the preamble does not end with the heads of its sections")
    wrong = place_sections(descriptors, lanes, cold_sections[:, 1] // 4, header.heads, parts)
    if wrong >= 0:
        raise PayloadError("section", f"cold section {wrong}: its parts do not add up")
    return descriptors, parts


def _resident_sections(
    header: PayloadHeader, descriptors: NDArray[np.int32], length: int
) -> NDArray[np.int64]:
    sections = np.empty((header.section_count, 2), np.int64)
    sections[:, 1] = 4 * descriptors[:, WORDS].astype(np.int64)
    ends = header.head_length + np.cumsum(sections[:, 1])
    sections[:, 0] = ends - sections[:, 1]
    if ends[-1] != length:
        raise PayloadError("layout", f"sections end at {ends[-1]}, the payload at {length}")
    return sections
