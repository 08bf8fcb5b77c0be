"""Frames that both protocols have: they come back as they were packed, or FrameError is raised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packkv_protos import framing
from packkv_protos.bulk import frames as bulk
from packkv_protos.framing import FrameError, Result
from packkv_protos.shared_memory import frames as shared_memory

BOTH = pytest.mark.parametrize("frames", [bulk, shared_memory], ids=["bulk", "shared memory"])
READERS: list[Callable[[memoryview], object]] = [
    bulk.read_greeting,
    bulk.read_hello,
    bulk.read_error,
    bulk.read_results,
    shared_memory.read_greeting,
    shared_memory.read_hello,
    shared_memory.read_locate,
    shared_memory.read_located,
    shared_memory.read_put,
]
# one of the two modules: what their functions have in common is what is tested here
Frames = Any


def body_of(frames: Frames, frame: bytes, name: str) -> memoryview:
    found, _, length = frames.read_prefix(frame)
    body = memoryview(frame)[framing.PREFIX.size :]
    assert (found.name, length) == (name, len(body))
    return body


@BOTH
def test_a_greeting_and_a_hello_come_back(frames: Frames) -> None:
    nonce = bytes(range(16))
    assert frames.read_greeting(body_of(frames, frames.pack_greeting(nonce), "GREETING")) == nonce
    for token in (None, "t\u00f6ken"):
        assert frames.read_hello(body_of(frames, frames.pack_hello(token), "HELLO")) == token


def test_each_protocol_greets_in_its_own_way() -> None:
    body = body_of(bulk, bulk.pack_greeting(bytes(16)), "GREETING")
    with pytest.raises(FrameError, match="PKVshm"):
        shared_memory.read_greeting(body)


@BOTH
@pytest.mark.parametrize("body", [b"", b"\1", b"\2\0token", b"\1\0\xff"])
def test_a_hello_of_another_version_or_no_text_is_refused(frames: Frames, body: bytes) -> None:
    with pytest.raises(FrameError, match="HELLO"):
        frames.read_hello(memoryview(body))


@BOTH
@given(st.lists(st.tuples(st.integers(0, 255), st.text(max_size=40)), max_size=5))
def test_results_come_back(frames: Frames, rows: list[tuple[int, str]]) -> None:
    results = [Result(*row) for row in rows]
    body = body_of(frames, frames.pack_results(results), "RESULTS")
    assert frames.read_results(body) == results


@BOTH
def test_long_sentences_are_cut_between_characters_and_long_bodies_refused(frames: Frames) -> None:
    error = body_of(frames, frames.pack_error(3, "x" + "é" * 5000), "ERROR")
    assert len(error) == framing.MAX_SENTENCE_BYTES - 1
    assert set(frames.read_error(error)) == {"x", "é"}
    with pytest.raises(FrameError, match="HELLO has 8195 bytes, the limit is 8194"):
        frames.pack_hello("x" * (framing.MAX_TOKEN_BYTES + 1))


@BOTH
@given(st.binary(min_size=8, max_size=8))
def test_a_prefix_is_known_and_short_or_refused(frames: Frames, prefix: bytes) -> None:
    try:
        kind, _, length = frames.read_prefix(prefix)
    except FrameError:
        return
    assert length <= frames.MAX_BODY[kind]


@pytest.mark.parametrize("reader", READERS)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(reader: Callable[[memoryview], object], raw: bytes) -> None:
    try:
        reader(memoryview(raw))
    except FrameError:
        return
