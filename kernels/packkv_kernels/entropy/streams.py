"""Slices of codes to bits and back, compiled: KVComp's array tree, and a table that is faster.

Both decoders read bits start … stop of u32 words and never another; both write as many codes as
`out` has room for, and say whether those took just these bits.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.entropy.bits import peek, put
from packkv_kernels.entropy.canonical import MAX_LENGTH, decode_table, decode_tree
from packkv_kernels.entropy.codebook import ESCAPE, RAW_BITS, SYMBOLS
from packkv_kernels.format.compiled import compiled

__all__ = ["TREE_NODES", "decode_by_table", "decode_by_tree", "encode_slice", "table_of", "tree_of"]

# 2 · 257 − 1 of a tree with a leaf per symbol, and below the escape 2 · 256 − 2 more.
TREE_NODES: Final = 2 * SYMBOLS + 2 * (1 << RAW_BITS)

_RAW_MASK: Final = (1 << RAW_BITS) - 1
_INDEX: Final = np.uint64((1 << MAX_LENGTH) - 1)


@compiled
def encode_slice(
    codes: NDArray[np.uint8],
    lengths: NDArray[np.uint8],
    codewords: NDArray[np.uint16],
    words: NDArray[np.uint32],
    at: int,
) -> int:
    """Writes codes from bit `at` on, over zeros; returns the next bit.

    Args:
        codes: [count].
        lengths, codewords: [257], of a codebook.
        words: with room for 20 bits a code.
        at: first bit.
    """
    for i in range(len(codes)):
        symbol = int(np.int64(codes[i]))
        if lengths[symbol]:
            at = put(words, at, codewords[symbol], lengths[symbol])
        else:
            at = put(words, at, codewords[ESCAPE], lengths[ESCAPE])
            at = put(words, at, symbol, RAW_BITS)
    return at


def tree_of(lengths: NDArray[np.uint8]) -> tuple[NDArray[np.uint16], NDArray[np.int16]]:
    """The array tree of a codebook; see `decode_tree`. Below the escape hang all 8-bit codes."""
    tree, leaf = np.zeros(2 * TREE_NODES, np.uint16), np.full(TREE_NODES, -1, np.int16)
    _plant(lengths, tree, leaf)
    return tree, leaf


@compiled
def _plant(lengths: NDArray[np.uint8], tree: NDArray[np.uint16], leaf: NDArray[np.int16]) -> None:
    """The tree of the symbols, then a full one below the escape: so decoding knows no escape."""
    nodes = decode_tree(lengths, tree, leaf)
    escape = 0
    while leaf[escape] != ESCAPE:
        escape += 1
    leaf[escape] = -1
    for code in range(1 << RAW_BITS):
        node = escape
        for bit in range(RAW_BITS):
            branch = 2 * node + ((code >> bit) & 1)
            if tree[branch] == 0:
                tree[branch] = nodes
                nodes += 1
            node = int(np.int64(tree[branch]))
        leaf[node] = code


def table_of(lengths: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The next 12 bits to symbol | length << 12."""
    table = np.empty(1 << MAX_LENGTH, np.uint16)
    decode_table(lengths, MAX_LENGTH, np.arange(len(lengths), dtype=np.uint16), table)
    return table


@compiled
def decode_by_tree(
    words: NDArray[np.uint32],
    start: int,
    stop: int,
    tree: NDArray[np.uint16],
    leaf: NDArray[np.int16],
    out: NDArray[np.uint8],
) -> bool:
    """Decodes a slice as KVComp does (arXiv 2509.00579, 3.3.1): no branch depends on the data.

    Args:
        words: with bits start … stop.
        start, stop: the slice's bits.
        tree, leaf: from `tree_of`.
        out: overwritten; if the bits are not those of as many codes, with anything.
    """
    node, written = 0, 0
    for at in range(start, stop):
        bit = (words[at >> 5] >> np.uint32(at & 31)) & np.uint32(1)
        node = int(np.int64(tree[2 * node + np.int64(bit)]))
        symbol = int(np.int64(leaf[node]))
        is_symbol = int(symbol >= 0)
        # always written, kept only when the node is a symbol; past the end it overwrites the last
        out[min(written, len(out) - 1)] = symbol & _RAW_MASK
        written += is_symbol
        node &= is_symbol - 1
    return node == 0 and written == len(out)


@compiled
def decode_by_table(
    words: NDArray[np.uint32],
    start: int,
    stop: int,
    table: NDArray[np.uint16],
    out: NDArray[np.uint8],
) -> bool:
    """Decodes a slice by the next 12 bits at once; arguments and answer like `decode_by_tree`.

    Args:
        words: with bits start … stop, and one word more than the last of them is in.
        start, stop: the slice's bits.
        table: from `table_of`.
        out: overwritten.
    """
    at = start
    for i in range(len(out)):
        if at >= stop:
            return False
        bits = peek(words, at)
        found = int(np.int64(table[np.int64(bits & _INDEX)]))
        symbol, length = found & 0xFFF, found >> 12
        if symbol == ESCAPE:
            symbol = int(np.int64(bits >> np.uint64(length))) & _RAW_MASK
            length += RAW_BITS
        out[i] = symbol
        at += length
    return at == stop
