"""A codebook's tables on a device: how codes are spelled, and how bits are read."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.entropy.codebook import ESCAPE, RAW_BITS, Codebook
from packkv_kernels.entropy.streams import table_of, tree_of
from packkv_kernels.entropy.triton.encode import SPELLED_BITS
from packkv_kernels.entropy.triton.slices import (
    BASE_SHIFT,
    CODE_SHIFT,
    IS_CODE,
    MASK_SHIFT,
    TOTAL_SHIFT,
)

__all__ = ["DeviceCodebook"]


@dataclass(frozen=True)
class DeviceCodebook:
    """Tables of one codebook.

    Attributes:
        spelled: uint32 [256], bits of each code | how many << 20.
        table: uint32 [4096], what the next 12 bits say.
        tree: uint32, KVComp's array tree: what comes after `bit` at `node`, at 2 · node + bit.

    `slices` says what an entry of either holds.
    """

    spelled: torch.Tensor
    table: torch.Tensor
    tree: torch.Tensor

    @classmethod
    def of(cls, book: Codebook, device: torch.device) -> "DeviceCodebook":
        """The tables of `book`."""
        arrays = (_spelled(book), _table(book), _tree(book))
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))


def _spelled(book: Codebook) -> NDArray[np.uint32]:
    words, lengths = book.codewords().astype(np.uint32), book.lengths.astype(np.uint32)
    codes = np.arange(ESCAPE, dtype=np.uint32)
    own = lengths[:ESCAPE] > 0
    bits = np.where(own, words[:ESCAPE], words[ESCAPE] | codes << lengths[ESCAPE])
    count = np.where(own, lengths[:ESCAPE], lengths[ESCAPE] + RAW_BITS)
    found: NDArray[np.uint32] = (bits | count << SPELLED_BITS).astype(np.uint32)
    return found


def _table(book: Codebook) -> NDArray[np.uint32]:
    found = table_of(book.lengths)
    symbol, length = (found & 0xFFF).astype(np.uint32), (found >> 12).astype(np.uint32)
    escape = symbol == ESCAPE
    mask = np.where(escape, (1 << RAW_BITS) - 1, 0) << MASK_SHIFT
    code = np.where(escape, 0, symbol) << BASE_SHIFT
    total = np.where(escape, length + RAW_BITS, length) << TOTAL_SHIFT
    entries: NDArray[np.uint32] = (length | mask | code | total).astype(np.uint32)
    return entries


def _tree(book: Codebook) -> NDArray[np.uint32]:
    """The array tree, with what a node says beside its name: a code, after which comes the root."""
    tree, leaf = tree_of(book.lengths)
    # a symbol's node has no children, and a reader never asks for them
    code = leaf[tree].astype(np.int64)
    found = np.where(code >= 0, IS_CODE | code << CODE_SHIFT, tree.astype(np.int64))
    return found.astype(np.uint32)
