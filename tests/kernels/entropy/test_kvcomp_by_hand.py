"""KVComp from the paper's text alone (arXiv 2509.00579), value by value, against the codec.

Nothing of `packkv_kernels.entropy` is used on this side but the bytes that it stores: a block is
read with a list of codewords, bit after bit.
"""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from packkv_kernels.config import CacheShape
from packkv_kernels.entropy import KVCompConfig, KVCompSide
from packkv_kernels.testing import random_kv

BLOCK, ESCAPE, LONGEST = 64, 256, 12
# K by channel and by block, V by token; scales up to where the paper stops
CASES = [("channel", 0.05), ("channel", 0.25), ("block", 0.05), ("token", 0.05), ("token", 0.15)]


def unit_of(kind: str, token: int, channel: int) -> int:
    return {"channel": channel, "block": 0, "token": token}[kind]


def units_of(block: NDArray[np.float32], kind: str) -> dict[int, list[float]]:
    units: dict[int, list[float]] = {}
    for token, row in enumerate(block.tolist()):
        for channel, value in enumerate(row):
            units.setdefault(unit_of(kind, token, channel), []).append(value)
    return units


def rounded_down(value: float) -> float:
    half = np.float16(value)
    return float(half if float(half) <= value else np.nextafter(half, np.float16(-np.inf)))


def rounded_up(value: float) -> float:
    half = np.float16(value)
    return float(half if float(half) >= value else np.nextafter(half, np.float16(np.inf)))


def quantise(block: NDArray[np.float32], kind: str, rel: float) -> list[list[int]]:
    """Codes of a block [64, head_dim]: of each unit, steps above its least value."""
    scales = {}
    for unit, values in units_of(block, kind).items():
        low = rounded_down(min(values))
        span = np.float32(max(values)) - np.float32(low)
        scales[unit] = (low, rounded_up(float(np.float32(rel) * span)) or 1.0)
    codes = []
    for token, row in enumerate(block):
        found = []
        for channel, value in enumerate(row):
            low, step = scales[unit_of(kind, token, channel)]
            found.append(int(np.rint((value - np.float32(low)) / np.float32(step))))
        codes.append(found)
    return codes


def huffman_bits(counts: Counter[int]) -> tuple[int, int]:
    """Total bits and longest codeword of Huffman's construction."""
    heap = [(count, 0) for count in counts.values()]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        (a, deep), (b, deeper) = heapq.heappop(heap), heapq.heappop(heap)
        total += a + b
        heapq.heappush(heap, (a + b, 1 + max(deep, deeper)))
    return total, heap[0][1]


def codewords(data: bytes) -> dict[str, int]:
    """Symbols by codeword, of a codebook as it is stored; the first bit of a codeword first."""
    first, last = data[0], data[1]
    nibbles = [part for byte in data[2:] for part in (byte & 15, byte >> 4)]
    lengths = {ESCAPE: nibbles[0]}
    lengths |= {code: nibbles[1 + code - first] for code in range(first, last + 1)}
    found, word, before = {}, 0, 0
    for length, symbol in sorted((n, symbol) for symbol, n in lengths.items() if n):
        word <<= length - before
        found[format(word, f"0{length}b")] = symbol
        word, before = word + 1, length
    return found


def read_codes(bits: str, words: dict[str, int]) -> list[int]:
    codes, at, word = [], 0, ""
    while at < len(bits):
        word += bits[at]
        at += 1
        if word in words:
            code, word = words[word], ""
            if code == ESCAPE:
                code, at = int(bits[at : at + 8][::-1], 2), at + 8
            codes.append(code)
    assert word == ""
    return codes


def bits_from(data: bytes) -> str:
    return "".join(format(byte, "08b")[::-1] for byte in data)


def read_block(data: bytes, units: int, words: dict[str, int]) -> tuple[list[list[int]], int]:
    """Codes of a block's 64 slices, and the bytes that it takes."""
    lengths = np.frombuffer(data[: 2 * BLOCK], "<u2").tolist()
    start = 2 * BLOCK + 4 * units
    ends = np.cumsum([0, *lengths]).tolist()
    bits = bits_from(data[start : start + -(-ends[-1] // 8)])
    slices = [read_codes(bits[a:b], words) for a, b in pairwise(ends)]
    return slices, start + 4 * -(-ends[-1] // 32)


@pytest.mark.parametrize(("kind", "rel"), CASES)
def test_codes_codebook_and_bytes_are_the_paper_s(kind: str, rel: float) -> None:
    heads, dim, blocks = 2, 8, 2
    drawn = random_kv(CacheShape(1, heads, dim), BLOCK * blocks)[kind == "token"]
    values: NDArray[np.float32] = drawn[0].float().numpy()
    side = made(kind, rel)
    side.append(values)
    assert side.codebook is not None
    book = side.codebook.to_bytes()
    words, counts = codewords(book), Counter[int]()
    bits = size = 0
    data = side.words.tobytes()
    for block in range(blocks):
        for head in range(heads):
            wanted = quantise(values[BLOCK * block : BLOCK * (block + 1), head], kind, rel)
            units = {"channel": dim, "block": 1, "token": BLOCK}[kind]
            # a 32-bit offset names the block's first word
            start = 4 * int(side.offsets[block, head])
            found, taken = read_block(data[start:], units, words)
            assert found == wanted
            assert start == size
            size += taken
            bits += sum(int(n) for n in np.frombuffer(data[start : start + 2 * BLOCK], "<u2"))
            counts.update(code for token in wanted for code in token)
    assert side.nbytes == size + 4 * blocks * heads + len(book)
    # the escape takes a codeword, of a count of one that never comes
    least, longest = huffman_bits(counts + Counter({ESCAPE: 1}))
    assert longest <= LONGEST
    escape = next(len(word) for word, symbol in words.items() if symbol == ESCAPE)
    assert bits + escape == least


def made(kind: str, rel: float) -> KVCompSide:
    if kind == "token":
        return KVCompConfig(rel_v=rel).values()
    return KVCompConfig(rel_k=rel, k_units=kind).keys()
