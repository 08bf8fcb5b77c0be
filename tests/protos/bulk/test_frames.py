"""Frames come back as they were packed; bytes that are none raise FrameError, nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packkv_protos.bulk import frames
from packkv_protos.bulk.frames import FrameError, Get, Kind

U32 = st.integers(0, 2**32 - 1)
NAMES = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=5)
READERS: list[Callable[[memoryview], object]] = [
    frames.read_welcome,
    frames.read_get,
    frames.read_found,
    frames.read_put,
    lambda body: frames.read_wanted(body, 4),
]


def body_of(frame: bytes, kind: Kind) -> memoryview:
    found, _, length = frames.read_prefix(frame)
    body = memoryview(frame)[frames.PREFIX.size :]
    assert (found, length) == (kind, len(body))
    return body


@given(
    layers=st.tuples(U32, U32),
    heads=st.tuples(U32, U32),
    most=st.integers(0, 2**64 - 1),
    groups=st.integers(1, frames.MAX_GROUPS),
    names=NAMES,
)
def test_a_get_comes_back(
    layers: tuple[int, int], heads: tuple[int, int], most: int, groups: int, names: list[bytes]
) -> None:
    get = Get(layers, heads, most, groups, names)
    assert frames.read_get(body_of(frames.pack_get(get), Kind.GET)) == get


@given(st.lists(st.tuples(U32, st.integers(0, 255)), max_size=5), st.lists(U32, max_size=12))
def test_a_find_comes_back(answers: list[tuple[int, int]], numbers: list[int]) -> None:
    rows = np.array(numbers[: len(numbers) // 3 * 3], np.uint32).reshape(-1, 3)
    lengths = np.array([length for length, _ in answers], np.uint32)
    misses = np.array([miss for _, miss in answers], np.uint8)
    packed = frames.pack_found(frames.Found(lengths, misses, rows[:1], rows))
    found = frames.read_found(body_of(packed, Kind.FOUND))
    assert found.lengths.tolist() == lengths.tolist()
    assert found.misses.tolist() == misses.tolist()
    assert found.groups.tolist() == rows[:1].tolist()
    assert found.extents.tolist() == rows.tolist()


@given(
    st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1)), min_size=1)
)
def test_a_put_comes_back(blocks: list[tuple[bytes, int]]) -> None:
    assert frames.read_put(body_of(frames.pack_put(blocks), Kind.PUT)) == blocks


@pytest.mark.parametrize("reader", READERS)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(reader: Callable[[memoryview], object], raw: bytes) -> None:
    try:
        reader(memoryview(raw))
    except FrameError:
        return
