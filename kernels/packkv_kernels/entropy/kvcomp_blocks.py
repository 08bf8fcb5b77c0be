"""KVComp's blocks, compiled: 64 tokens of one head, a slice of bits per token.

    u16 × 64              head_dim, 64 or 1 pairs          bits of slice 0, 1, … 63
    ┌─────────────────────┬────────────────────────────────┬────────┬────────┬─────┬──────┐
    │ bits of each slice  │ minimum fp16, step fp16 << 16  │ token 0│ token 1│ ... │ zeros│
    └─────────────────────┴────────────────────────────────┴────────┴────────┴─────┴──────┘

A GPU gives a slice to a thread, and finds its first bit by a scan over the lengths (arXiv
2509.00579, 3.2.2). A block begins at a word that the block offsets array names.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.entropy.streams import decode_by_table, encode_slice
from packkv_kernels.format.compiled import compiled

__all__ = ["BLOCK_SLACK", "decode_blocks", "encode_blocks", "most_words"]

BLOCK_SLACK: Final = 1  # a decoder may look at the word after its last

_LENGTH_WORDS: Final = BLOCK_TOKENS // 2


def most_words(head_dim: int, units: int) -> int:
    """Words that no block exceeds: every code as escape and 8 bits."""
    return _LENGTH_WORDS + units + -(-BLOCK_TOKENS * head_dim * 20 // 32)


@compiled
def encode_blocks(
    codes: NDArray[np.uint8],
    units: NDArray[np.uint32],
    lengths: NDArray[np.uint8],
    codewords: NDArray[np.uint16],
    words: NDArray[np.uint32],
    offsets: NDArray[np.uint32],
) -> int:
    """Writes blocks one after the other; returns their end in words.

    Args:
        codes: [blocks, 64, head_dim].
        units: [blocks, units], minimum and step of each.
        lengths, codewords: [257], of a codebook.
        words: zeros, with room for `most_words` a block.
        offsets: [blocks], overwritten: first word of each block.
    """
    end = 0
    for block in range(len(codes)):
        offsets[block] = end
        start = end + _LENGTH_WORDS
        words[start : start + units.shape[1]] = units[block]
        at = 32 * (start + units.shape[1])
        for t in range(BLOCK_TOKENS):
            after = encode_slice(codes[block, t], lengths, codewords, words, at)
            words[end + t // 2] |= np.uint32(after - at) << np.uint32(16 * (t % 2))
            at = after
        end = (at + 31) // 32
    return end


@compiled
def decode_blocks(
    words: NDArray[np.uint32],
    offsets: NDArray[np.uint32],
    table: NDArray[np.uint16],
    units: NDArray[np.uint32],
    codes: NDArray[np.uint8],
) -> bool:
    """Reads blocks that `encode_blocks` wrote; False if a slice is not as long as it says.

    Args:
        words: their words, and BLOCK_SLACK more.
        offsets: [blocks], where they begin.
        table: of the codebook.
        units: [blocks, units], overwritten.
        codes: [blocks, 64, head_dim], overwritten.
    """
    for block in range(len(offsets)):
        base = np.int64(offsets[block])
        start = base + _LENGTH_WORDS
        units[block] = words[start : start + units.shape[1]]
        at = 32 * (start + units.shape[1])
        for t in range(BLOCK_TOKENS):
            length = np.int64(words[base + t // 2] >> np.uint32(16 * (t % 2))) & 0xFFFF
            if not decode_by_table(words, at, at + length, table, codes[block, t]):
                return False
            at += length
    return True
