"""Canonical, length-limited codes: right, best possible, and the same from both halves."""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packkv_kernels.entropy import Codebook, reference
from packkv_kernels.entropy.canonical import codewords, is_complete, limit_lengths
from packkv_kernels.entropy.streams import (
    decode_by_table,
    decode_by_tree,
    encode_slice,
    table_of,
    tree_of,
)
from packkv_kernels.errors import InvalidInput, PayloadError

COUNTS = st.lists(
    st.one_of(st.integers(0, 3), st.integers(0, 1000), st.sampled_from([0, 1, 10**6])),
    min_size=2,
    max_size=40,
).filter(lambda counts: sum(count > 0 for count in counts) >= 2)
CODES = st.lists(st.one_of(st.integers(0, 6), st.integers(0, 255)), min_size=1, max_size=300)


def compiled_lengths(counts: list[int], limit: int) -> list[int]:
    lengths = np.full(len(counts), 99, np.uint8)
    limit_lengths(np.array(counts, np.int64), limit, lengths)
    found: list[int] = lengths.tolist()
    return found


def book_of(codes: list[int]) -> Codebook:
    return Codebook.fit(np.bincount(codes, minlength=256).astype(np.int64))


@given(counts=COUNTS, spare=st.integers(0, 6))
@settings(max_examples=150)
def test_codes_are_prefix_free_within_the_limit_and_the_reference_s(
    counts: list[int], spare: int
) -> None:
    used = sum(count > 0 for count in counts)
    limit = min(12, math.ceil(math.log2(used)) + spare)
    lengths = compiled_lengths(counts, limit)
    assert lengths == reference.code_lengths(counts, limit)
    assert max(lengths) <= limit
    assert [length > 0 for length in lengths] == [count > 0 for count in counts]
    assert is_complete(np.array(lengths, np.uint8), limit)
    words = reference.codewords(lengths)
    assert not any(b.startswith(a) for s, a in words.items() for t, b in words.items() if s != t)
    found = np.empty(len(counts), np.uint16)
    codewords(np.array(lengths, np.uint8), found)
    spelled = {s: format(found[s], f"0{lengths[s]}b")[::-1] for s in words}
    assert spelled == words


@given(counts=COUNTS)
@settings(max_examples=100)
def test_a_code_is_within_a_bit_of_the_entropy(counts: list[int]) -> None:
    lengths = reference.code_lengths(counts, 40)
    total = sum(counts)
    bits = sum(count * length for count, length in zip(counts, lengths, strict=True)) / total
    entropy = -sum(c / total * math.log2(c / total) for c in counts if c)
    assert entropy - 1e-9 <= bits < entropy + 1
    # a limit costs bits, never saves any
    limited = compiled_lengths(counts, 12)
    assert bits <= sum(c * n for c, n in zip(counts, limited, strict=True)) / total + 1e-9


def test_a_limit_is_kept_at_the_least_cost() -> None:
    # Fibonacci counts want codewords of 1, 2, 3, … bits
    counts = [1, 1, 2, 3, 5, 8, 13, 21]
    assert sorted(compiled_lengths(counts, 12)) == [1, 2, 3, 4, 5, 6, 7, 7]
    assert compiled_lengths(counts, 3) == [3] * 8
    four = compiled_lengths(counts, 4)
    assert sum(c * n for c, n in zip(counts, four, strict=True)) == 135


@given(known=CODES, codes=CODES, start=st.integers(0, 70))
@settings(max_examples=150)
def test_both_decoders_read_what_the_reference_spells(
    known: list[int], codes: list[int], start: int
) -> None:
    book = book_of(known)
    symbols = np.array(codes, np.uint8)
    words = np.zeros(len(codes) + 8, np.uint32)
    stop = encode_slice(symbols, book.lengths, book.codewords(), words, start)
    spelled = reference.codewords(book.lengths.tolist())
    escape = spelled[256]
    bits = "0" * start + "".join(
        spelled.get(code, escape + format(code, "08b")[::-1]) for code in codes
    )
    assert len(bits) == stop
    assert words.tolist()[: (stop + 31) // 32] == reference.pack_bits(bits)
    tree, leaf = tree_of(book.lengths)
    for out in (np.zeros_like(symbols), np.zeros_like(symbols)):
        assert decode_by_tree(words, start, stop, tree, leaf, out)
        assert out.tolist() == codes
    out = np.zeros_like(symbols)
    assert decode_by_table(words, start, stop, table_of(book.lengths), out)
    assert out.tolist() == codes


@given(known=CODES, words=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
@settings(max_examples=80)
def test_both_decoders_agree_on_any_bits(known: list[int], words: list[int]) -> None:
    book = book_of(known)
    stream = np.array([*words, 0], np.uint32)
    tree, leaf = tree_of(book.lengths)
    table = table_of(book.lengths)
    for count in (1, 7, 40):
        for stop in (0, 5, 32 * len(words)):
            by_tree, by_table = np.zeros(count, np.uint8), np.zeros(count, np.uint8)
            answers = (
                decode_by_tree(stream, 0, stop, tree, leaf, by_tree),
                decode_by_table(stream, 0, stop, table, by_table),
            )
            assert answers[0] == answers[1]
            if answers[0]:
                assert by_tree.tolist() == by_table.tolist()


@given(codes=CODES)
@settings(max_examples=80)
def test_a_codebook_travels_in_few_bytes(codes: list[int]) -> None:
    book = book_of(codes)
    data = book.to_bytes()
    assert len(data) <= 3 + (max(codes) - min(codes) + 2) / 2
    assert Codebook.from_bytes(data).lengths.tolist() == book.lengths.tolist()


@given(data=st.binary(max_size=140))
def test_no_bytes_become_an_incomplete_codebook(data: bytes) -> None:
    with suppress(PayloadError):
        book = Codebook.from_bytes(data)
        assert book.to_bytes() == data
        assert is_complete(book.lengths, 12)


def test_a_codebook_of_nothing_can_still_spell_everything() -> None:
    book = Codebook.fit(np.zeros(256, np.int64))
    codes = np.arange(256, dtype=np.uint8)
    words = np.zeros(300, np.uint32)
    stop = encode_slice(codes, book.lengths, book.codewords(), words, 0)
    out = np.empty_like(codes)
    assert decode_by_table(words, 0, stop, table_of(book.lengths), out)
    assert (out == codes).all()


def test_a_histogram_of_another_size_is_refused() -> None:
    with pytest.raises(InvalidInput, match="256"):
        Codebook.fit(np.zeros(255, np.int64))
