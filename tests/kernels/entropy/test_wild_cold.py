"""Cold payloads as liars send them, with checksums that are right: no bytes do harm."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from packkv_kernels.entropy import from_cold
from packkv_kernels.errors import PayloadError
from packkv_kernels.format import Payload, read_payload, write_payload
from packkv_kernels.format.header import CHECKSUM_AT, HEADER_BYTES, unpack_header


def sealed(data: bytearray) -> Payload:
    """These bytes as a liar would send them: with checksums that are right. Raises PayloadError."""
    row = np.dtype([("offset", "<u4"), ("length", "<u4"), ("digest", "V16")])
    header = unpack_header(memoryview(data))[0]
    if header.head_length > len(data):
        return read_payload(data)
    table = np.frombuffer(data, row, header.section_count, HEADER_BYTES)
    for i, (offset, length, _) in enumerate(table.tolist()):
        place = HEADER_BYTES + 24 * i + 8
        data[place : place + 16] = xxhash.xxh3_128_digest(bytes(data[offset : offset + length]))
    data[CHECKSUM_AT:HEADER_BYTES] = bytes(16)
    head = bytes(data[: header.head_length])
    data[CHECKSUM_AT:HEADER_BYTES] = xxhash.xxh3_128_digest(head)
    return read_payload(data)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_are_refused_or_mean_the_same(
    resident: Payload, cold: Payload, data: st.DataObject
) -> None:
    changed = bytearray(cold.data)
    preamble = cold.header.preamble_at, cold.header.head_length - 1
    places = st.one_of(
        st.integers(0, HEADER_BYTES - 1),
        st.integers(HEADER_BYTES, preamble[0] - 1),
        st.integers(*preamble),
        st.integers(preamble[0], preamble[0] + 40),
        st.integers(preamble[1], len(changed) - 1),
    )
    changes = st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=8)
    for place, value in data.draw(changes):
        changed[place] ^= value
    # a codeword that nothing uses may change without a trace
    with suppress(PayloadError):
        assert from_cold(sealed(changed)).data == resident.data


def test_every_bit_of_the_preamble_counts(resident: Payload, cold: Payload) -> None:
    strange = []
    for at in range(cold.header.preamble_at, cold.header.head_length):
        changed = bytearray(cold.data)
        changed[at] ^= 1 << at % 8
        with suppress(PayloadError):
            # code lengths that nothing uses can trade places
            if from_cold(sealed(changed)).data != resident.data:
                strange.append(at)
    assert strange == []


@pytest.mark.parametrize("place", ["length", "checksum", "version", "zeros", "last section"])
def test_a_changed_field_is_refused(cold: Payload, place: str) -> None:
    changed = bytearray(cold.data)
    offset = {"length": 0, "checksum": 8, "version": 24, "zeros": 29}.get(place)
    changed[len(changed) - 20 if offset is None else cold.header.preamble_at + offset] ^= 1
    with pytest.raises(PayloadError):
        from_cold(sealed(changed))


@given(words=st.lists(st.integers(0, 2**32 - 1), max_size=300))
@settings(max_examples=100, deadline=None)
def test_wild_sections_are_refused_or_mean_the_same(
    resident: Payload, cold: Payload, words: list[int]
) -> None:
    changed = bytearray(cold.data)
    tail = np.array(words, np.uint32).tobytes()
    changed[len(changed) - len(tail) :] = tail
    with suppress(PayloadError):
        assert from_cold(sealed(changed)).data == resident.data


@given(words=st.binary(max_size=600))
@settings(max_examples=200, deadline=None)
def test_wild_preambles_are_refused(cold: Payload, words: bytes) -> None:
    """Of any length: the sections move with it."""
    preamble = words + bytes(-len(words) % 16)
    header = replace(cold.header, preamble_bytes=len(preamble))
    sections = [cold.section(*divmod(i, header.heads)) for i in range(header.section_count)]
    with pytest.raises(PayloadError):
        from_cold(read_payload(write_payload(header, sections, preamble)))
