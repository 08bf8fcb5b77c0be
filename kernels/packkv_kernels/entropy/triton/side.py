"""DeviceSide: K or V of one layer in KVComp's blocks on a device, as it grows."""

from dataclasses import dataclass

import torch

from packkv_kernels.compress.triton.target import Target
from packkv_kernels.config import BLOCK_TOKENS, MAX_HEAD_DIM
from packkv_kernels.entropy.codebook import ESCAPE, Codebook
from packkv_kernels.entropy.kvcomp import Units
from packkv_kernels.entropy.kvcomp_blocks import most_words
from packkv_kernels.entropy.triton.codebook import DeviceCodebook
from packkv_kernels.entropy.triton.decode import decode_blocks
from packkv_kernels.entropy.triton.encode import SPELLED_BITS, encode_slices, gather_blocks
from packkv_kernels.entropy.triton.slices import SLACK_WORDS
from packkv_kernels.entropy.triton.units import (
    BLOCK,
    CHANNEL,
    TOKEN,
    count_codes,
    quantise_blocks,
)
from packkv_kernels.errors import InvalidInput

__all__ = [
    "COUNTED",
    "DECODE_REGISTERS",
    "GATHERED",
    "KINDS",
    "DeviceBlocks",
    "DeviceSide",
    "encode_codes",
    "quantise_warps",
    "slice_warps",
]

KINDS = {Units.BLOCK: BLOCK, Units.CHANNEL: CHANNEL, Units.TOKEN: TOKEN}

# Codes that a program counts, and words that one gathers.
COUNTED = 4096
GATHERED = 512

# Of a thread of the kernel that decodes: left to itself, NVIDIA's compiler takes fewer and spills.
DECODE_REGISTERS = 64


def quantise_warps(padded: int) -> int:
    """Warps that hold a block of so many channels in their registers."""
    return max(4, padded // 32)


def slice_warps(target: Target) -> int:
    """Warps of 64 slices, a thread for each."""
    return BLOCK_TOKENS // target.lanes


@dataclass(frozen=True)
class DeviceBlocks:
    """Blocks as they came from the encoder.

    Attributes:
        words: uint32; the first starts[-1] are the blocks, the rest is unused.
        starts: int64 [blocks · heads + 1], first word of each, and the end of the last.
    """

    words: torch.Tensor
    starts: torch.Tensor


class DeviceSide:
    """Compressed K or V of one layer on a device; the bits are those of `KVCompSide`.

    Attributes:
        codebook: None until there are blocks; made from those of the first `append`.
        words: uint32, the blocks one after the other, and SLACK_WORDS zeros.
        offsets: int64 [blocks, heads], first word of each.
    """

    def __init__(self, rel: float, units: Units, device: torch.device) -> None:
        """
        Args:
            rel: step as a share of a unit's range, of a `KVCompConfig`.
            units: what shares a step.
            device: where kernels run.
        """
        self.codebook: Codebook | None = None
        self.tables: DeviceCodebook | None = None
        self.words = torch.zeros(SLACK_WORDS, dtype=torch.uint32, device=device)
        self.offsets = torch.empty(0, 0, dtype=torch.int64, device=device)
        self.units = units
        self.head_dim = 0
        self._rel = rel

    @property
    def per_block(self) -> int:
        """Units of a block."""
        return self.units.per_block(self.head_dim)

    def append(self, values: torch.Tensor) -> None:
        """Compresses whole blocks behind those that are there.

        The device is waited for: at the first call for the histogram, because a codebook is made
        on the host, and at every call for the length of what came of it.

        Args:
            values: [tokens, heads, head_dim] on the device, any float type, contiguous; tokens a
                multiple of 64.

        Raises:
            InvalidInput: another shape, NaN, infinity, or values beyond ±65,504.
        """
        self._check(values)
        heads, self.head_dim = values.shape[1:]
        codes, units = self.quantise(values)
        if self.tables is None:
            counts = count(codes).cpu().numpy().astype("int64")
            self.codebook = Codebook.fit(counts)
            self.tables = DeviceCodebook.of(self.codebook, values.device)
            self.offsets = self.offsets.reshape(0, heads)
        found = encode_codes(codes, units, self.tables)
        end, begin = int(found.starts[-1]), len(self.words) - SLACK_WORDS
        if begin + end >= 2**32:
            raise InvalidInput("the blocks of a layer exceed what 32-bit offsets can name")
        # torch does not join unsigned words
        held = self.words.view(torch.int32)
        new = found.words[:end].view(torch.int32)
        self.words = torch.cat([held[:begin], new, held[begin:]]).view(torch.uint32)
        offsets = (found.starts[:-1] + begin).view(-1, heads)
        self.offsets = torch.cat([self.offsets, offsets])

    def _check(self, values: torch.Tensor) -> None:
        shape = tuple(values.shape)
        if (
            len(shape) != 3
            or not shape[0]
            or shape[0] % BLOCK_TOKENS
            or not 0 < shape[2] <= MAX_HEAD_DIM
        ):
            raise InvalidInput(
                f"{shape} is not [tokens, heads, head_dim] with tokens a multiple of "
                f"{BLOCK_TOKENS} and head_dim up to {MAX_HEAD_DIM}"
            )
        expected = (self.offsets.shape[1], self.head_dim)
        if self.codebook is not None and shape[1:] != expected:
            raise InvalidInput(f"heads and head_dim {shape[1:]}, but before {expected}")
        # written so that NaN does not pass
        if not bool((values.abs() <= 65_504).all()):
            raise InvalidInput("kvcomp takes finite values up to ±65504")

    def quantise(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(codes uint8 [blocks, heads, head_dim, 64], units uint32 [blocks, heads, units])."""
        tokens, heads, head_dim = values.shape
        blocks, device = tokens // BLOCK_TOKENS, values.device
        codes = torch.empty(
            blocks, heads, head_dim, BLOCK_TOKENS, dtype=torch.uint8, device=device
        )  # fmt: skip
        units = torch.empty(
            blocks, heads, self.units.per_block(head_dim), dtype=torch.uint32, device=device
        )
        padded = max(16, 1 << (head_dim - 1).bit_length())
        quantise_blocks[(blocks * heads,)](
            values, codes, units, self._rel,
            HEADS=heads, D=head_dim, D_PAD=padded, UNITS=KINDS[self.units],
            num_warps=quantise_warps(padded), enable_fp_fusion=False,
        )  # fmt: skip
        return codes, units

    def decode(self, *, dtype: torch.dtype = torch.float32, tree: bool = False) -> torch.Tensor:
        """All compressed tokens, [tokens, heads, head_dim].

        Args:
            dtype: of the result.
            tree: read bit by bit down the array tree, as the paper does; the result is the same.
        """
        blocks, heads = self.offsets.shape
        values = torch.empty(
            blocks * BLOCK_TOKENS, heads, self.head_dim, dtype=dtype, device=self.words.device
        )
        if self.tables is not None:
            target = Target.of(self.words.device)
            decode_blocks[(blocks * heads,)](
                self.words, self.offsets, self.tables.tree if tree else self.tables.table, values,
                self.per_block,
                HEADS=heads, D=self.head_dim, UNITS=KINDS[self.units], TREE=tree,
                num_warps=slice_warps(target), enable_fp_fusion=False,
                **target.registers(DECODE_REGISTERS),
            )  # fmt: skip
        return values


def count(codes: torch.Tensor) -> torch.Tensor:
    """How often each code comes, int32 [256]."""
    counts = torch.zeros(ESCAPE, dtype=torch.int32, device=codes.device)
    count_codes[(-(-codes.numel() // COUNTED),)](codes, counts, codes.numel(), CODES=COUNTED)
    return counts


def encode_codes(codes: torch.Tensor, units: torch.Tensor, tables: DeviceCodebook) -> DeviceBlocks:
    """Blocks of codes and units from `DeviceSide.quantise`; the device is never waited for."""
    head_dim, device = codes.shape[2], codes.device
    blocks, per_block = codes.shape[0] * codes.shape[1], units.shape[2]
    rows = -(-head_dim * SPELLED_BITS // 32)

    def integers(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    buffers = integers(blocks, rows, BLOCK_TOKENS, dtype=torch.uint32)
    lengths = integers(blocks, BLOCK_TOKENS, dtype=torch.int16)
    ends, words = integers(blocks, BLOCK_TOKENS), integers(blocks)
    encode_slices[(blocks,)](
        codes, tables.spelled, buffers, lengths, ends, words, per_block,
        D=head_dim, ROWS=rows, num_warps=slice_warps(Target.of(device)),
    )  # fmt: skip
    starts = torch.zeros(blocks + 1, dtype=torch.int64, device=device)
    torch.cumsum(words, 0, out=starts[1:])
    room = most_words(head_dim, per_block)
    gathered = integers(blocks * room, dtype=torch.uint32)
    gather_blocks[(blocks, -(-room // GATHERED))](
        buffers, lengths.view(torch.uint32), ends, units, starts, gathered, per_block,
        D=head_dim, ROWS=rows, WORDS=GATHERED,
    )  # fmt: skip
    return DeviceBlocks(gathered, starts)
