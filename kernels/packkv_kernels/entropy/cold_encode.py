"""Whole sections to cold words, compiled."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.entropy.cold_side import read_codes, side_start, side_words
from packkv_kernels.entropy.cold_symbols import code_side, count_side
from packkv_kernels.entropy.tables import SideTables
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import lay_out_bitmaps

__all__ = ["MARGIN_WORDS", "encode_sections", "read_sections"]

# What a side may have written before it turns out not to pay: token scales and one channel.
MARGIN_WORDS: Final = 256

_SIDES: Final = (tile.K_SIDE, tile.V_SIDE)


@compiled
def read_sections(
    start: int,
    stop: int,
    words: NDArray[np.uint32],
    bases: NDArray[np.int64],
    descriptors: NDArray[np.int32],
    codes: NDArray[np.uint8],
    has_codes: NDArray[np.bool_],
    k_counts: SideTables,
    v_counts: SideTables,
) -> None:
    """Reads and counts the codes of sections start … stop.

    Args:
        words, bases, descriptors: proven sections.
        codes: [sections, 2, head_dim, 64], overwritten.
        has_codes: [sections, 2], overwritten: whether a side has codes that can be coded.
        k_counts, v_counts: counted on.
    """
    for i in range(start, stop):
        for s in range(2):
            side, row = _SIDES[s], descriptors[i]
            has_codes[i, s] = read_codes(words, bases[i], row, side, codes[i, s])
            if has_codes[i, s]:
                counts = k_counts if s == 0 else v_counts
                count_side(words, bases[i], row, side, codes[i, s], counts)


@compiled
def encode_sections(
    start: int,
    stop: int,
    words: NDArray[np.uint32],
    bases: NDArray[np.int64],
    descriptors: NDArray[np.int32],
    codes: NDArray[np.uint8],
    has_codes: NDArray[np.bool_],
    k_tables: SideTables,
    v_tables: SideTables,
    arena: NDArray[np.uint32],
    sizes: NDArray[np.uint32],
) -> None:
    """Encodes sections start … stop, each into a row of `arena`.

    Args:
        words, bases, descriptors, codes, has_codes: as `read_sections` left them.
        k_tables, v_tables: codeword | length << 16 of all symbols.
        arena: [sections, words of the longest section + MARGIN_WORDS].
        sizes: [sections], overwritten: words | K is coded << 30 | V is coded << 31.
    """
    for i in range(start, stop):
        row, out = descriptors[i], arena[i]
        section = words[bases[i] : bases[i] + row[tile.WORDS]]
        at = lay_out_bitmaps(row)
        out[:at] = section[:at]
        exact = side_start(row, tile.K_SIDE) - row[tile.K_EXACT]
        out[at : at + exact] = section[row[tile.K_EXACT] :][:exact]
        at += exact
        coded = 0
        for s in range(2):
            side, count = _SIDES[s], 0
            room = side_words(row, side)
            tables = k_tables if s == 0 else v_tables
            if has_codes[i, s]:
                target = out[at : at + room + MARGIN_WORDS]
                count = code_side(section, 0, row, side, codes[i, s], tables, target)
            if count:
                coded |= 1 << s
                at += count
            else:
                out[at : at + room] = section[side_start(row, side) :][:room]
                at += room
        sizes[i] = at | coded << 30
