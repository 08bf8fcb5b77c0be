"""ColdDecoder: cold payloads to resident sections on a device, as a sequence of launches."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.compress.triton.target import Target
from packkv_kernels.entropy.cold_head import ColdHead
from packkv_kernels.entropy.cold_plan import BASE, COPIES, LANES_AT, TABLES, ColdPlan
from packkv_kernels.entropy.cold_side import LANES
from packkv_kernels.entropy.places import NEXT_PLACE
from packkv_kernels.entropy.tables import CLASS_ROWS, ROWS, TABLE_BITS
from packkv_kernels.entropy.triton.cold_lanes import SYMBOL_WORDS, decode_lanes
from packkv_kernels.entropy.triton.cold_sections import write_sections
from packkv_kernels.entropy.triton.cold_tables import CODE_SYMBOLS, OTHER_SYMBOLS, spread_tables
from packkv_kernels.errors import InvalidInput, PayloadError
from packkv_kernels.format import Payload, PayloadHeader
from packkv_kernels.format.tile import HEAD_DIM, v_unit

__all__ = [
    "LANE_WARPS",
    "SECTION_WARPS",
    "TABLE_WARPS",
    "ColdDecoder",
    "DecodedSections",
    "SentPlans",
    "cold_to_resident",
    "lane_sections",
]

# Of device memory, between calls: tables, and symbols that are not written to planes yet.
SCRATCH_BYTES = 256 << 20

# Threads that have a lane each wait for each other: the fewer, the less.
LANE_WARPS, SECTION_WARPS, TABLE_WARPS = 1, 4, 8

# Sections of one launch, so that all that is theirs begins at a multiple of 16 bytes.
_WHOLE = 16

_TABLE_BYTES = 2 * 2 * ROWS << TABLE_BITS


def lane_sections(target: Target) -> int:
    """Sections of a program whose threads have a lane each."""
    return target.lanes // LANES


@dataclass(frozen=True)
class SentPlans:
    """Plans on a device, and where what comes of them goes.

    Attributes:
        words: uint32, their cold words one after the other.
        rows, lanes, widths, descriptors: of all plans, see `ColdPlan`.
        payloads: how many have tables here.
        tables: of each kind: how many symbols there may be, lengths uint32 [tables, LENGTH_WORDS],
            and int32 [tables], which table each is.
    """

    words: torch.Tensor
    rows: torch.Tensor
    lanes: torch.Tensor
    widths: torch.Tensor
    descriptors: torch.Tensor
    payloads: int
    tables: list[tuple[int, torch.Tensor, torch.Tensor]]


class ColdDecoder:
    """Decodes sections of cold payloads of one head_dim; the bits are those of `from_cold`.

    A call launches on the current stream and never waits for it.
    """

    def __init__(
        self, head_dim: int, device: torch.device, *, scratch_bytes: int = SCRATCH_BYTES
    ) -> None:
        """
        Args:
            head_dim: of all payloads.
            device: where kernels run.
            scratch_bytes: of memory for what is between bits and planes, and for tables.

        Raises:
            InvalidInput: too little for one payload's tables and one program.
        """
        self.head_dim, self._device = head_dim, device
        self._target = Target.of(device)
        # half for tables of payloads, half for symbols of sections, and their low bits
        self._payloads = scratch_bytes // 2 // _TABLE_BYTES
        sections = scratch_bytes // 2 // (2 * 2 * 4 * SYMBOL_WORDS * head_dim)
        self._sections = sections // _WHOLE * _WHOLE
        if self._payloads < 1 or self._sections < 1:
            raise InvalidInput(
                f"{scratch_bytes} bytes are too little: one payload's tables take {_TABLE_BYTES}"
            )
        self._places = torch.from_numpy(NEXT_PLACE.copy()).to(device)

    def __call__(
        self, plans: Sequence[ColdPlan], out: torch.Tensor, starts: Sequence[int]
    ) -> torch.Tensor:
        """Decodes plans, each to its place.

        Args:
            plans: of this head_dim, at least one. Those of one payload share its tables.
            out: uint32 on the device.
            starts: first word of each plan's sections in `out`, which are written over; places
                do not overlap.

        Returns:
            bool [sections], on the device: whether a section's lanes are not those of a section.
            What is written in its place then is in bounds, and nothing else.

        Raises:
            InvalidInput: no plans, another head_dim, or a place that is not within `out`.
        """
        self._check(plans, out, starts)
        faults = []
        for first in range(0, len(plans), self._payloads):
            here = slice(first, first + self._payloads)
            for plan, start in zip(plans[here], starts[here], strict=True):
                out[start : start + plan.resident_words].zero_()
            faults.append(self.decode(self.send(plans[here], starts[here]), out))
        return torch.cat(faults).any(1)

    def send(self, plans: Sequence[ColdPlan], starts: Sequence[int]) -> SentPlans:
        """Copies plans to the device; arguments as for a call, and proven."""
        # plans of one payload have one array of lengths
        lengths = {id(plan.lengths): plan.lengths for plan in plans}
        numbers = {key: number for number, key in enumerate(lengths)}
        tables_of = [numbers[id(plan.lengths)] for plan in plans]
        return SentPlans(
            words=self._sent(np.concatenate([plan.words for plan in plans])),
            rows=self._sent(_joined_rows(plans, starts, tables_of)),
            lanes=self._sent(np.concatenate([plan.lanes for plan in plans])),
            widths=self._sent(np.concatenate([plan.widths for plan in plans])),
            descriptors=self._sent(np.concatenate([plan.descriptors for plan in plans])),
            payloads=len(lengths),
            tables=[
                (symbols, self._sent(packed), self._sent(targets))
                for symbols, packed, targets in _used_tables(list(lengths.values()))
            ],
        )

    def decode(self, sent: SentPlans, out: torch.Tensor) -> torch.Tensor:
        """Decodes plans into their places, which are zeros; a CUDA graph can hold that.

        Returns:
            uint8 [sections, LANES]: whether a lane is not full to the bit.
        """
        tables = self.spread(sent)
        count, head_dim = len(sent.rows), self.head_dim
        faults = torch.empty(count, LANES, dtype=torch.uint8, device=self._device)
        shape = min(count, self._sections), 2, head_dim
        symbols, plain = (self._integers(*shape, SYMBOL_WORDS) for _ in range(2))
        channels, most = self._integers(*shape), lane_sections(self._target)
        for first in range(0, count, self._sections):
            here = slice(first, first + self._sections)
            rows, descriptors = sent.rows[here], sent.descriptors[here]
            decode_lanes[(-(-len(rows) // most),)](
                sent.words, rows, sent.lanes[here], sent.widths[here], descriptors, tables, out,
                symbols, plain, channels, faults[here], len(rows),
                D=head_dim, UNIT_V=v_unit(head_dim), SECTIONS=most, num_warps=LANE_WARPS,
            )  # fmt: skip
            write_sections[(len(rows), 2)](
                sent.words, rows, sent.widths[here], descriptors, symbols, plain, channels, out,
                D=head_dim, D_PAD=max(16, 1 << (head_dim - 1).bit_length()),
                UNIT_V=v_unit(head_dim), num_warps=SECTION_WARPS,
            )  # fmt: skip
        return faults

    def spread(self, sent: SentPlans) -> torch.Tensor:
        """The decode tables, uint16 [payloads, 2, ROWS, 256]."""
        tables = torch.zeros(
            sent.payloads, 2, ROWS, 1 << TABLE_BITS, dtype=torch.uint16, device=self._device
        )
        for symbols, lengths, targets in sent.tables:
            spread_tables[(len(targets),)](
                lengths, targets, self._places, tables, COUNT=symbols, num_warps=TABLE_WARPS
            )
        return tables

    def _check(self, plans: Sequence[ColdPlan], out: torch.Tensor, starts: Sequence[int]) -> None:
        if not plans:
            raise InvalidInput("no plans to decode")
        for plan, start in zip(plans, starts, strict=True):
            if (plan.descriptors[:, HEAD_DIM] != self.head_dim).any():
                raise InvalidInput(f"a plan whose head_dim is not {self.head_dim}")
            if start < 0 or start + plan.resident_words > len(out):
                raise InvalidInput(
                    f"words {start} … {start + plan.resident_words} are not within {len(out)}"
                )

    def _sent(self, array: NDArray[Any]) -> torch.Tensor:
        """A copy on the device, which is not waited for."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def _integers(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.uint32, device=self._device)


@dataclass(frozen=True)
class DecodedSections:
    """Sections of resident payloads on a device, layer by layer of one payload after the other.

    Attributes:
        headers: of the resident payloads.
        words: uint32 on the device.
        bases: int64 [sections], first word of each.
        descriptors: int32 [sections, DESCRIPTOR_WORDS].
        faults: bool [sections], on the device; see `prove`.
    """

    headers: list[PayloadHeader]
    words: torch.Tensor
    bases: NDArray[np.int64]
    descriptors: NDArray[np.int32]
    faults: torch.Tensor

    def prove(self) -> None:
        """Waits until the device has decoded everything. Before, no value may be believed.

        Raises:
            PayloadError: reason "section": lanes that no section has.
        """
        wrong = self.faults.nonzero().flatten().tolist()
        if wrong:
            raise PayloadError("section", f"cold section {wrong[0]} does not add up")


def cold_to_resident(
    payloads: Sequence[Payload], device: torch.device, decoder: ColdDecoder | None = None
) -> DecodedSections:
    """Copies cold payloads to a device and decodes them there, without waiting for it.

    Args:
        payloads: verified, in cold form, of one head_dim, at least one.
        device: where kernels run.
        decoder: whose memory is used; None: a new one's.

    Raises:
        PayloadError: what is seen without decoding: no payload comes back.
        InvalidInput: no payloads, one that is not cold, or of another head_dim.
    """
    if not payloads:
        raise InvalidInput("no payloads to decode")
    heads = [ColdHead.of(payload) for payload in payloads]
    plans = [head.plan(payload.data) for head, payload in zip(heads, payloads, strict=True)]
    *starts, end = accumulate([plan.resident_words for plan in plans], initial=0)
    words = torch.empty(end, dtype=torch.uint32, device=device)
    decoder = decoder or ColdDecoder(heads[0].header.head_dim, device)
    faults = decoder(plans, words, starts)
    return DecodedSections(
        headers=[head.header for head in heads],
        words=words,
        bases=np.concatenate([at + plan.bases for at, plan in zip(starts, plans, strict=True)]),
        descriptors=np.concatenate([plan.descriptors for plan in plans]),
        faults=faults,
    )


def _joined_rows(
    plans: Sequence[ColdPlan], starts: Sequence[int], tables: Sequence[int]
) -> NDArray[np.int64]:
    """Rows of some plans whose words lie one after the other."""
    found = []
    before = accumulate((len(plan.words) for plan in plans), initial=0)
    for plan, start, table, words in zip(plans, starts, tables, before, strict=False):
        rows = plan.rows.copy()
        rows[:, LANES_AT] += words
        rows[:, COPIES::3] += words
        rows[:, TABLES] = table
        rows[:, BASE] = start + plan.bases
        found.append(rows)
    return np.concatenate(found)


def _used_tables(
    payloads: Sequence[NDArray[np.uint8]],
) -> list[tuple[int, NDArray[np.uint32], NDArray[np.int32]]]:
    """Tables that have symbols, codes and others: most symbols, lengths, and which each is."""
    lengths = np.concatenate(payloads).reshape(len(payloads) * 2 * ROWS, -1)
    used = np.flatnonzero(lengths[:, 0]).astype(np.int32)
    of_codes = used % ROWS < CLASS_ROWS
    kinds = (CODE_SYMBOLS, used[of_codes]), (OTHER_SYMBOLS, used[~of_codes])
    return [
        (symbols, _nibbles(lengths[targets]), targets) for symbols, targets in kinds if len(targets)
    ]


def _nibbles(lengths: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Eight lengths to a word."""
    packed = (lengths[:, ::2] | lengths[:, 1::2] << 4).astype(np.uint8)
    return packed.view("<u4")
