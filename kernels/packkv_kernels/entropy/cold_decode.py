"""Cold words back to whole sections, compiled. They need not be believed beforehand."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.entropy.cold_lanes import coded_words, decode_side
from packkv_kernels.entropy.cold_side import side_start, side_words
from packkv_kernels.entropy.tables import DecodeTables
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import is_raw, lay_out_bitmaps
from packkv_kernels.format.proof import prove_head

__all__ = ["decode_sections", "prove_heads"]

_SIZE: Final = (1 << 30) - 1  # what of a section's size is its words


@compiled
def prove_heads(
    cold: NDArray[np.uint32],
    starts: NDArray[np.int64],
    sizes: NDArray[np.uint32],
    codec: int,
    extent: NDArray[np.int32],
    descriptors: NDArray[np.int32],
) -> tuple[int, int]:
    """Proves the heads of cold sections, which are those of the sections themselves.

    Args:
        cold: cold words, with SLACK_WORDS more at their end.
        starts: first word of each section.
        sizes: words | K is coded << 30 | V is coded << 31.
        codec: HYBRID or PACKKV.
        extent: int32 [3], tokens, sinks and head_dim.
        descriptors: int32 [sections, DESCRIPTOR_WORDS], overwritten.

    Returns:
        (number of the fault, section it is in); fault 0: all are sound.
    """
    for i in range(len(starts)):
        row = descriptors[i]
        row[:] = 0
        row[tile.TOKENS], row[tile.SINKS], row[tile.HEAD_DIM] = extent
        fault = prove_head(cold, starts[i], int(np.int64(sizes[i]) & _SIZE), codec, row)
        if fault:
            return fault, i
    return 0, 0


@compiled
def decode_sections(
    start: int,
    stop: int,
    cold: NDArray[np.uint32],
    starts: NDArray[np.int64],
    sizes: NDArray[np.uint32],
    descriptors: NDArray[np.int32],
    tables: tuple[DecodeTables, DecodeTables],
    words: NDArray[np.uint32],
    bases: NDArray[np.int64],
) -> int:
    """Decodes sections start … stop.

    Args:
        cold, starts, sizes, descriptors: with proven heads.
        tables: of K and V.
        words: zeros, overwritten with the sections.
        bases: first word of each section in `words`.

    Returns:
        The first section whose cold words do not add up, −1 if all do.
    """
    for i in range(start, stop):
        row = descriptors[i]
        end = starts[i] + (np.int64(sizes[i]) & _SIZE)
        coded = int(np.int64(sizes[i])) >> 30
        section = words[bases[i] : bases[i] + row[tile.WORDS]]
        if not _decode_section(cold, starts[i], end, coded, row, tables, section):
            return i
    return -1


@compiled
def _decode_section(
    cold: NDArray[np.uint32],
    start: int,
    end: int,
    coded: int,
    row: NDArray[np.int32],
    tables: tuple[DecodeTables, DecodeTables],
    section: NDArray[np.uint32],
) -> bool:
    head = lay_out_bitmaps(row)
    exact = side_start(row, tile.K_SIDE) - row[tile.K_EXACT]
    at = start + head + exact
    if at > end:
        return False
    section[:head] = cold[start : start + head]
    section[row[tile.K_EXACT] :][:exact] = cold[start + head : at]
    for s in range(2):
        side = tile.K_SIDE if s == 0 else tile.V_SIDE
        is_coded = (coded >> s) & 1
        if is_coded and is_raw(row[tile.FLAGS], side):
            return False
        room = side_words(row, side)
        count = coded_words(cold, at, row, side) if is_coded else room
        if at + count > end:
            return False
        if not is_coded:
            section[side_start(row, side) :][:room] = cold[at : at + count]
        elif not decode_side(cold, at, section, row, side, tables[s]):
            return False
        at += count
    return bool(at == end)
