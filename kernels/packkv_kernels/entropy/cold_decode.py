"""Cold words back to whole sections, compiled. They need not be believed beforehand."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.entropy.cold_lanes import decode_side
from packkv_kernels.entropy.cold_side import (
    FLOAT_SCALE_WORDS,
    LANES,
    SIDES,
    has_float_scales,
    side_start,
    side_words,
)
from packkv_kernels.entropy.section_heads import HEAD_WORDS, read_head, read_parts
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import is_raw, lay_out_bitmaps
from packkv_kernels.format.proof import prove_head

__all__ = [
    "PART_WORDS",
    "WIDTHS_AT",
    "copy_plain",
    "decode_sections",
    "place_lanes",
    "place_sections",
    "plain_copies",
    "prove_heads",
    "shifted",
]

# What is known of a cold section, int64: whether K and V are coded and share their scales; the bit
# of its head at which widths begin; its first word and its end; the first words of its scales of
# four bytes, −1 without any. Words count from the first section.
_SHARED: Final = 2
WIDTHS_AT: Final = 4
_AT: Final = 5
_END: Final = 6
_SCALES_AT: Final = 7
PART_WORDS: Final = 9

# No section ends here, whatever fills it.
_UNSOUND: Final = -9


def shifted(parts: NDArray[np.int64], words: int) -> NDArray[np.int64]:
    """Parts of whole layers whose cold words are not counted from the first section any more."""
    moved = parts.copy()
    moved[:, _AT : _SCALES_AT + 2] -= words
    scales = parts[:, _SCALES_AT : _SCALES_AT + 2]
    moved[:, _SCALES_AT : _SCALES_AT + 2][scales < 0] = -1
    return moved


@compiled
def prove_heads(
    heads: NDArray[np.uint32],
    length: int,
    codec: int,
    extent: NDArray[np.int32],
    k_tables: NDArray[np.uint16],
    v_tables: NDArray[np.uint16],
    descriptors: NDArray[np.int32],
    parts: NDArray[np.int64],
) -> tuple[int, int, int]:
    """Reads and proves the heads of all sections.

    Args:
        heads: words, and SLACK_WORDS more.
        length: how many words there are.
        codec: HYBRID or PACKKV.
        extent: int32 [3], tokens, sinks and head_dim.
        k_tables, v_tables: decode tables.
        descriptors: int32 [sections, DESCRIPTOR_WORDS], overwritten.
        parts: int64 [sections, PART_WORDS], overwritten but for where sections are.

    Returns:
        (number of the fault or −1 if heads do not end in time, section it is in, bits of all
        heads); fault 0: all are sound.
    """
    head = np.empty(HEAD_WORDS, np.uint32)
    at, flags = 0, np.int32(0)
    for i in range(len(descriptors)):
        row = descriptors[i]
        row[:] = 0
        row[tile.FLAGS] = flags
        row[tile.TOKENS], row[tile.SINKS], row[tile.HEAD_DIM] = extent
        at = read_parts(heads, at, row, parts[i])
        flags = row[tile.FLAGS]
        parts[i, WIDTHS_AT] = at
        at = read_head(heads, at, row, k_tables, v_tables, head)
        if at > 32 * length:
            return -1, i, at
        fault = prove_head(head, 0, HEAD_WORDS, codec, row)
        if fault:
            return fault, i, at
    return 0, 0, at


@compiled
def place_sections(
    descriptors: NDArray[np.int32],
    lanes: NDArray[np.int64],
    lengths: NDArray[np.int64],
    heads: int,
    parts: NDArray[np.int64],
) -> int:
    """Says where each cold section lies, and where its token scales of four bytes do.

    Args:
        descriptors: with proven heads.
        lanes: [sections, LANES], bits of each lane.
        lengths: [sections], words of each.
        heads: sections of a layer.
        parts: int64 [sections, PART_WORDS], filled in.

    Returns:
        The first section whose parts are not as long as it is, or that has a coded raw side, lanes
        without a coded side, or scales shared with none in its layer; −1 if all are sound.
    """
    start = 0
    for i in range(len(descriptors)):
        before = parts[i - 1, _SCALES_AT:] if i % heads else np.full(2, -1)
        end = _place(descriptors[i], lanes[i].sum(), start, before, parts[i])
        if (end + 3) // 4 * 4 != start + lengths[i]:
            return i
        start += lengths[i]
        parts[i, _END] = start
    return -1


@compiled
def _place(
    row: NDArray[np.int32],
    bits: int,
    start: int,
    before: NDArray[np.int64],
    part: NDArray[np.int64],
) -> int:
    """Fills in a section's part but for its end, which it returns; −9 if it is not sound.

    Args:
        row: its descriptor.
        bits: of all its lanes.
        start: its first word.
        before: where the scales of four bytes of the head before are, of K and V.
        part: [PART_WORDS].
    """
    at = start + side_start(row, tile.K_SIDE) - row[tile.K_EXACT]
    part[_AT] = start
    for s in range(2):
        side, is_coded, is_shared = SIDES[s], part[s], part[_SHARED + s]
        part[_SCALES_AT + s] = -1
        if has_float_scales(row, side):
            own = at if is_coded else at + row[side + tile.SCALES] - side_start(row, side)
            part[_SCALES_AT + s] = before[s] if is_shared else own
        if is_coded and (is_raw(row[tile.FLAGS], side) or (is_shared and before[s] < 0)):
            return _UNSOUND
        at += _plain_words(row, side, is_coded, is_shared)
    if bits and not (part[0] or part[1]):
        return _UNSOUND
    return int(at + (bits + 31) // 32)


@compiled
def _plain_words(row: NDArray[np.int32], side: int, is_coded: int, is_shared: int) -> int:
    """How many words of a side are as they are."""
    if not is_coded:
        return side_words(row, side)
    return FLOAT_SCALE_WORDS if has_float_scales(row, side) and not is_shared else 0


@compiled
def decode_sections(
    start: int,
    stop: int,
    cold: NDArray[np.uint32],
    heads: NDArray[np.uint32],
    parts: NDArray[np.int64],
    lanes: NDArray[np.int64],
    descriptors: NDArray[np.int32],
    k_tables: NDArray[np.uint16],
    v_tables: NDArray[np.uint16],
    words: NDArray[np.uint32],
    bases: NDArray[np.int64],
) -> int:
    """Decodes sections start … stop.

    Args:
        cold: words, and SLACK_WORDS more.
        heads: as for `prove_heads`.
        parts, lanes, descriptors: with proven heads and known places.
        k_tables, v_tables: decode tables.
        words: zeros where the sections go.
        bases: first word of each section in `words`.

    Returns:
        The first section whose cold words do not add up, −1 if all do.
    """
    head, bounds = np.empty(HEAD_WORDS, np.uint32), np.empty(LANES + 1, np.int64)
    copies = np.empty((3, 3), np.int64)
    for i in range(start, stop):
        row = descriptors[i]
        section = words[bases[i] : bases[i] + row[tile.WORDS]]
        read_head(heads, parts[i, WIDTHS_AT], row, k_tables, v_tables, head)
        end = lay_out_bitmaps(row)
        section[:end] = head[:end]
        at = plain_copies(parts[i], row, copies)
        copy_plain(cold, copies, section)
        if not place_lanes(cold, at, lanes[i], parts[i], bounds):
            return i
        if not _decode_lanes(cold, bounds, parts[i], row, k_tables, v_tables, section):
            return i
    return -1


@compiled
def plain_copies(
    parts: NDArray[np.int64], row: NDArray[np.int32], copies: NDArray[np.int64]
) -> int:
    """What of a section is not coded; returns the word at which its lanes begin.

    Args:
        parts, row: of the section, proven and with known places.
        copies: [3, 3], overwritten: first word in the cold words, and in the section, and how many,
            of exact rows, of K and of V.
    """
    at = parts[_AT]
    exact = side_start(row, tile.K_SIDE) - row[tile.K_EXACT]
    copies[0, 0], copies[0, 1], copies[0, 2] = at, row[tile.K_EXACT], exact
    at += exact
    for s in range(2):
        copy = copies[1 + s]
        copy[:] = 0
        if not parts[s]:
            copy[0], copy[1] = at, side_start(row, SIDES[s])
            copy[2] = side_words(row, SIDES[s])
            at += copy[2]
        elif parts[_SCALES_AT + s] >= 0:
            copy[0], copy[1] = parts[_SCALES_AT + s], row[SIDES[s] + tile.SCALES]
            copy[2] = FLOAT_SCALE_WORDS
            at += 0 if parts[_SHARED + s] else FLOAT_SCALE_WORDS
    return int(at)


@compiled
def copy_plain(
    cold: NDArray[np.uint32], copies: NDArray[np.int64], section: NDArray[np.uint32]
) -> None:
    """Copies what is not coded, as `plain_copies` has it."""
    for i in range(len(copies)):
        source, target, count = copies[i]
        section[target : target + count] = cold[source : source + count]


@compiled
def place_lanes(
    cold: NDArray[np.uint32],
    start: int,
    lanes: NDArray[np.int64],
    parts: NDArray[np.int64],
    bounds: NDArray[np.int64],
) -> bool:
    """Says where lanes lie; False if they are not followed by zeros.

    Args:
        cold: words.
        start: word at which they begin.
        lanes: [LANES], bits of each.
        parts: of the section.
        bounds: [LANES + 1], overwritten: first bit of each, and the end of the last.
    """
    bounds[0] = 32 * start
    for lane in range(LANES):
        bounds[lane + 1] = bounds[lane] + lanes[lane]
    bit = bounds[LANES]
    if bit & 31 and cold[bit >> 5] >> np.uint32(bit & 31):
        return False
    return not cold[(bit + 31) >> 5 : parts[_END]].any()


@compiled
def _decode_lanes(
    cold: NDArray[np.uint32],
    bounds: NDArray[np.int64],
    parts: NDArray[np.int64],
    row: NDArray[np.int32],
    k_tables: NDArray[np.uint16],
    v_tables: NDArray[np.uint16],
    section: NDArray[np.uint32],
) -> bool:
    """Decodes the coded sides; False if lanes are not full to the bit."""
    at, ends = bounds[:LANES].copy(), bounds[1:]
    for s in range(2):
        tables = k_tables if s == 0 else v_tables
        if parts[s] and not decode_side(cold, at, ends, section, row, s, tables):
            return False
    return bool((at == ends).all())
