"""Payload: a block as it is stored and sent; written once, checked whole before it is believed.

    0          192                        head_length                   payload_length
    ┌──────────┬───────────────┬──────────┬─────────┬─────────┬─────┬─────────┐
    │ header   │ section table │ preamble │ section │ section │ ... │ section │
    └──────────┴───────────────┴──────────┴─────────┴─────────┴─────┴─────────┘
     └────── covered by head_checksum ───┘ └─ each covered by its digest in the table

Only the cold form has a preamble. Every field is in docs/codec.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from packkv_kernels.errors import InvalidInput, PayloadError
from packkv_kernels.format.header import (
    ALIGNMENT,
    CHECKSUM_AT,
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    VERSION,
    Expectation,
    Form,
    KVDtype,
    PayloadHeader,
    broken_limit,
    pack_header,
    unpack_header,
)

__all__ = [
    "VERSION",
    "Expectation",
    "Form",
    "KVDtype",
    "Payload",
    "PayloadHeader",
    "open_payload",
    "read_payload",
    "verify_layers",
    "write_head",
    "write_payload",
]

_ROW = np.dtype([("offset", "<u4"), ("length", "<u4"), ("digest", "V16")])


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


def write_payload(
    header: PayloadHeader, sections: Sequence[bytes | memoryview], preamble: bytes = b""
) -> bytearray:
    """Puts header, table, preamble, sections and checksums together.

    Args:
        header: what the payload is.
        sections: layers · heads sections, layer-major, each of a multiple of 16 bytes.
        preamble: of the cold form, `header.preamble_bytes` long.

    Raises:
        InvalidInput: a field beyond its limits, or sections that are too few, many or long.
    """
    return bytearray().join((write_head(header, sections, preamble), *sections))


def write_head(
    header: PayloadHeader, sections: Sequence[bytes | memoryview], preamble: bytes = b""
) -> bytearray:
    """What `write_payload` puts before the sections."""
    wrong = broken_limit(header)
    if wrong:
        raise InvalidInput(wrong)
    if len(preamble) != header.preamble_bytes:
        raise InvalidInput(f"{len(preamble)} bytes of preamble, not {header.preamble_bytes}")
    table = _table_of(header, sections)
    end = header.head_length + int(table["length"].sum(dtype=np.int64))
    if end > MAX_PAYLOAD_BYTES:
        raise InvalidInput(f"payload of {end} bytes exceeds {MAX_PAYLOAD_BYTES}")
    head = bytearray(pack_header(header, end) + table.tobytes())
    head += bytes(header.preamble_at - len(head)) + preamble
    head[CHECKSUM_AT:HEADER_BYTES] = xxhash.xxh3_128_digest(head)
    return head


def read_payload(
    data: bytes | bytearray | memoryview, expect: Expectation | None = None
) -> Payload:
    """Believes `data` only when every checksum, limit and expectation holds.

    Raises:
        PayloadError: the first thing that does not hold.
    """
    payload = open_payload(data, expect)
    verify_layers(payload, range(payload.header.layers))
    return payload


def open_payload(
    data: bytes | bytearray | memoryview, expect: Expectation | None = None
) -> Payload:
    """As `read_payload`, of a payload that is still on its way: only its head must be there, in
    memory of the whole length. No section may be looked at before `verify_layers` has seen it.

    Raises:
        PayloadError: the first thing that does not hold.
    """
    view = memoryview(data).cast("B").toreadonly()
    header, length = unpack_header(view)
    _check_length(view, header, length)
    _check_head(view, header.head_length)
    table = np.frombuffer(view, _ROW, header.section_count, HEADER_BYTES)
    sections = np.empty((len(table), 2), np.int64)
    sections[:, 0] = table["offset"]
    sections[:, 1] = table["length"]
    _check_table(view, header, sections)
    _check_identity(header, expect or Expectation())
    return Payload(header, view, sections)


def verify_layers(payload: Payload, layers: range) -> None:
    """Compares the sections of some layers, one after the other, with their digests.

    Raises:
        PayloadError: reason "checksum".
    """
    header, digest = payload.header, xxhash.xxh3_128_digest
    first, last = layers.start * header.heads, layers.stop * header.heads
    table = np.frombuffer(payload.data, _ROW, header.section_count, HEADER_BYTES)[first:last]
    found = b"".join(
        [
            digest(payload.data[offset : offset + length])
            for offset, length in payload.sections[first:last].tolist()
        ]
    )
    if found != table["digest"].tobytes():
        changed = np.frombuffer(found, "V16") != table["digest"]
        section = first + int(np.argmax(changed))
        raise PayloadError("checksum", f"section {section} differs from its digest")


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
    digest = xxhash.xxh3_128(view[:CHECKSUM_AT])
    digest.update(bytes(16))
    digest.update(view[HEADER_BYTES:head_length])
    if digest.digest() != view[CHECKSUM_AT:HEADER_BYTES]:
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
    if any(view[HEADER_BYTES + _ROW.itemsize * len(sections) : header.preamble_at]):
        raise PayloadError("layout", "padding of the section table is not 0")


def _check_identity(header: PayloadHeader, expect: Expectation) -> None:
    for field in fields(expect):
        wanted, found = getattr(expect, field.name), getattr(header, field.name)
        if wanted is not None and wanted != found:
            raise PayloadError("identity", f"{field.name} is {_spell(found)}, not {_spell(wanted)}")


def _spell(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)
