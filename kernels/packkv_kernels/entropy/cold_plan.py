"""ColdPlan: what a device must know to decode cold sections, every number of it proven here.

A kernel cannot refuse. So what the host's decoder looks at on its way is looked at before: heads,
where parts lie, zeros behind the lanes, and whatever is in a section as it is. What is left to the
device is the lanes, any bits of which decode to something in bounds.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.entropy.channels import read_widths
from packkv_kernels.entropy.cold_decode import WIDTHS_AT, copy_plain, place_lanes, plain_copies
from packkv_kernels.entropy.cold_lanes import SLACK_WORDS
from packkv_kernels.entropy.cold_side import LANES, SIDES
from packkv_kernels.entropy.section_heads import HEAD_WORDS, read_head
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import lay_out_bitmaps
from packkv_kernels.format.proof import prove_sections

__all__ = [
    "BASE",
    "CODED",
    "COPIES",
    "COPY_COUNT",
    "LANES_AT",
    "PLAN_WORDS",
    "TABLES",
    "ColdPlan",
    "plan_sections",
    "planned_words",
]

# A row of a plan, int64: the word at which lanes begin, whose tables they are read with, the first
# word of the section that is written, whether K and V are coded; then, of what is copied as it is
# (its head, exact rows, K, V): first word, and where to in the section, and how many.
LANES_AT: Final = 0
TABLES: Final = 1
BASE: Final = 2
CODED: Final = 3
COPIES: Final = 5
COPY_COUNT: Final = 4
PLAN_WORDS: Final = COPIES + 3 * COPY_COUNT

# No sound section has as many: 1,024 channels of 64 codes of 12 bits, with 39 bits beside them, and
# token scales. So bits of a section are counted in 32 bits, however long it claims to be.
_MOST_LANE_BITS: Final = 1 << 20

# `plan_sections` found that lanes are too long, or not followed by zeros.
UNSOUND_LANES: Final = -1


@dataclass(frozen=True, eq=False)
class ColdPlan:
    """Some sections of one cold payload, as a device takes them.

    Attributes:
        words: uint32, their cold words and the heads they come to, then SLACK_WORDS zeros.
        rows: int64 [sections, PLAN_WORDS]; BASE and TABLES are whoever decodes'.
        lanes: int32 [sections, LANES + 1], first bit of each lane, and the end of the last,
            counted from LANES_AT.
        widths: uint8 [sections, units of K and of V], bits of each unit.
        bases: int64 [sections], first word of each in what comes of it.
        descriptors: int32 [sections, DESCRIPTOR_WORDS], of what comes of it.
        lengths: uint8 [2, ROWS, MAX_SYMBOLS], of the codewords of K and of V.
    """

    words: NDArray[np.uint32]
    rows: NDArray[np.int64]
    lanes: NDArray[np.int32]
    widths: NDArray[np.uint8]
    bases: NDArray[np.int64]
    descriptors: NDArray[np.int32]
    lengths: NDArray[np.uint8]

    @property
    def resident_words(self) -> int:
        """How many words come of it."""
        return int(self.bases[-1] + self.descriptors[-1, tile.WORDS]) if len(self.bases) else 0


def planned_words(cold_words: int, sections: int) -> int:
    """The most words that a plan of so many words with their slack has."""
    return cold_words + sections * HEAD_WORDS


@compiled
def plan_sections(
    cold: NDArray[np.uint32],
    heads: NDArray[np.uint32],
    parts: NDArray[np.int64],
    lanes: NDArray[np.int64],
    descriptors: NDArray[np.int32],
    k_tables: NDArray[np.uint16],
    v_tables: NDArray[np.uint16],
    codec: int,
    words: NDArray[np.uint32],
    rows: NDArray[np.int64],
    starts: NDArray[np.int32],
    widths: NDArray[np.uint8],
) -> tuple[int, int, int]:
    """Proves sections but for what is in their lanes, and plans how they are decoded.

    Args:
        cold: words, and SLACK_WORDS more.
        heads, parts, lanes, descriptors, k_tables, v_tables: as for `decode_sections`.
        codec: HYBRID or PACKKV.
        words: [planned_words], overwritten.
        rows, starts, widths: of the plan, overwritten.

    Returns:
        (number of the fault as in `prove_sections`, or UNSOUND_LANES; section it is in; how many
        of `words` there are); fault 0: all are sound.
    """
    head, bounds = np.empty(HEAD_WORDS, np.uint32), np.empty(LANES + 1, np.int64)
    copies, proven = np.empty((3, 3), np.int64), np.empty((1, tile.DESCRIPTOR_WORDS), np.int32)
    end = len(cold) - SLACK_WORDS
    words[:end] = cold[:end]
    for i in range(len(descriptors)):
        row = descriptors[i]
        read_head(heads, parts[i, WIDTHS_AT], row, k_tables, v_tables, head)
        section = np.zeros(row[tile.WORDS], np.uint32)
        head_words = lay_out_bitmaps(row)
        section[:head_words] = head[:head_words]
        at = plain_copies(parts[i], row, copies)
        copy_plain(cold, copies, section)
        if lanes[i].sum() > _MOST_LANE_BITS or not place_lanes(
            cold, at, lanes[i], parts[i], bounds
        ):
            return UNSOUND_LANES, i, 0
        # as a whole section whose codes are all 0
        extent = np.array([row[tile.TOKENS], row[tile.SINKS], row[tile.HEAD_DIM]], np.int32)
        length = np.full(1, row[tile.WORDS], np.int64)
        fault = prove_sections(section, np.zeros(1, np.int64), length, codec, extent, proven)[0]
        if fault:
            return fault, i, 0
        units = row[tile.HEAD_DIM] // 4
        read_widths(section, 0, row, SIDES[0], widths[i, :units])
        read_widths(section, 0, row, SIDES[1], widths[i, units:])
        rows[i, LANES_AT] = at
        rows[i, CODED : CODED + 2] = parts[i, :2]
        rows[i, COPIES], rows[i, COPIES + 1], rows[i, COPIES + 2] = end, 0, head_words
        rows[i, COPIES + 3 :] = copies.reshape(-1)
        starts[i] = bounds - 32 * at
        words[end : end + head_words] = head[:head_words]
        end += head_words
    words[end : end + SLACK_WORDS] = 0
    return 0, 0, end + SLACK_WORDS
