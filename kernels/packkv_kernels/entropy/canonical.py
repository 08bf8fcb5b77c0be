"""Canonical, length-limited Huffman codes, compiled: lengths, codewords, decode table, decode tree.

A code is its **lengths**: uint8 [symbols], 0 for a symbol without a codeword. Codewords follow
from them as in DEFLATE (RFC 1951, 3.2.2): shorter ones first, equal lengths in symbol order. Bit
streams run from the lowest bit of a u32 word up, and a codeword's first bit comes first, so a
codeword is kept with its first bit lowest.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.format.compiled import compiled

__all__ = ["MAX_LENGTH", "codewords", "decode_table", "decode_tree", "is_complete", "limit_lengths"]

MAX_LENGTH: Final = 12


@compiled
def limit_lengths(counts: NDArray[np.int64], limit: int, lengths: NDArray[np.uint8]) -> None:
    """Lengths of a code of least total length, none above `limit` bits.

    Package-merge (Larmore and Hirschberg, *A fast algorithm for optimal length-limited Huffman
    codes*, 1990), in the form that keeps only which places of each list are leaves. At equal
    weight a leaf goes before a package, and a lower symbol before a higher one.

    Args:
        counts: [symbols], ≥ 0; at most 2^limit of them above 0.
        limit: longest codeword.
        lengths: [symbols], overwritten; 0 where the count is 0. A lone symbol gets one bit.
    """
    lengths[:] = 0
    order = _by_count(counts)
    n = len(order)
    if n < 2:
        lengths[order] = 1
        return
    leaves = counts[order]
    is_leaf = np.zeros((limit, 2 * n), np.bool_)
    below, merged = np.empty((2, 2 * n), np.int64)
    size = 0
    for level in range(limit):
        size = _merge(leaves, below[:size], is_leaf[level], merged)
        below, merged = merged, below
    wanted = 2 * n - 2
    for level in range(limit - 1, -1, -1):
        taken = int(np.count_nonzero(is_leaf[level, :wanted]))
        for symbol in order[:taken]:
            lengths[symbol] += np.uint8(1)
        wanted = 2 * (wanted - taken)


@compiled
def _by_count(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Symbols with a count, seldom ones first, lower ones before higher ones."""
    order = np.flatnonzero(counts)
    if len(order) > 64:
        return order[np.argsort(counts[order], kind="mergesort")]
    # by insertion: alphabets of cold coding are small, and there are many
    for i in range(1, len(order)):
        symbol, at = order[i], i
        while at and counts[order[at - 1]] > counts[symbol]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = symbol
    return order


@compiled
def _merge(
    leaves: NDArray[np.int64],
    below: NDArray[np.int64],
    is_leaf: NDArray[np.bool_],
    merged: NDArray[np.int64],
) -> int:
    """Leaves and pairs of neighbours of the list below, both ascending, as one ascending list."""
    pairs = len(below) // 2
    size = len(leaves) + pairs
    leaf, pair = 0, 0
    for at in range(size):
        weight = below[2 * pair] + below[2 * pair + 1] if pair < pairs else np.int64(0)
        is_leaf[at] = pair == pairs or (leaf < len(leaves) and leaves[leaf] <= weight)
        if is_leaf[at]:
            merged[at] = leaves[leaf]
            leaf += 1
        else:
            merged[at] = weight
            pair += 1
    return size


@compiled
def is_complete(lengths: NDArray[np.uint8], limit: int) -> bool:
    """Whether every bit string starts with just one codeword, and none is longer than `limit`."""
    total = 0
    for symbol in range(len(lengths)):
        if lengths[symbol] > limit:
            return False
        if lengths[symbol]:
            total += 1 << (limit - lengths[symbol])
    return total == 1 << limit


@compiled
def codewords(lengths: NDArray[np.uint8], codes: NDArray[np.uint16]) -> None:
    """Writes each symbol's codeword, first bit lowest; 0 for a symbol without one."""
    following = np.zeros(MAX_LENGTH + 2, np.int64)
    for length in lengths:
        following[length + 1] += 1
    following[1] = 0
    for length in range(1, MAX_LENGTH + 1):
        # the first codeword of this length: after those that are shorter, which end here
        following[length] = (following[length - 1] + following[length]) << 1
    for symbol in range(len(lengths)):
        length, code, turned = int(lengths[symbol]), following[lengths[symbol]], 0
        following[length] += 1
        for _ in range(length):
            turned = turned << 1 | code & 1
            code >>= 1
        codes[symbol] = turned


@compiled
def decode_table(
    lengths: NDArray[np.uint8], bits: int, values: NDArray[np.uint16], table: NDArray[np.uint16]
) -> None:
    """Table of the next `bits` bits of a stream to a symbol's value | length << 12.

    Args:
        lengths: none above `bits`.
        bits: of the index.
        values: of each symbol, below 4,096.
        table: [2^bits], overwritten; 0 where no codeword leads.
    """
    codes = np.empty(len(lengths), np.uint16)
    codewords(lengths, codes)
    table[:] = 0
    for symbol in range(len(lengths)):
        if lengths[symbol]:
            row = values[symbol] | np.uint16(lengths[symbol]) << np.uint16(12)
            for at in range(codes[symbol], len(table), 1 << np.int64(lengths[symbol])):
                table[at] = row


@compiled
def decode_tree(
    lengths: NDArray[np.uint8], tree: NDArray[np.uint16], leaf: NDArray[np.int16]
) -> int:
    """KVComp's array tree: after `bit` at `node` comes tree[2 · node + bit]; 0 is the root.

    Args:
        lengths: of a complete code.
        tree: [4 · symbols], overwritten.
        leaf: [2 · symbols], overwritten: a node's symbol, −1 inside the tree.

    Returns:
        How many nodes there are.
    """
    codes = np.empty(len(lengths), np.uint16)
    codewords(lengths, codes)
    tree[:] = 0
    leaf[:] = -1
    nodes = 1
    for symbol in range(len(lengths)):
        node = 0
        for bit in range(lengths[symbol]):
            branch = 2 * node + ((codes[symbol] >> bit) & 1)
            if tree[branch] == 0:
                tree[branch] = nodes
                nodes += 1
            node = int(np.int64(tree[branch]))
        if lengths[symbol]:
            leaf[node] = symbol
    return nodes
