"""DeviceLayer: packed pages of one layer as kernels on a device read them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.attention.packed import PackedLayer
from packkv_kernels.compress.plan import LayerPlan
from packkv_kernels.compress.rotation import rotation_span
from packkv_kernels.compress.scales import scale_tables
from packkv_kernels.compress.triton.operators import unpack
from packkv_kernels.format import tile
from packkv_kernels.format.directory import K_BITMAPS, MAX_UNITS, directory_rows

__all__ = [
    "NARROW_UNITS",
    "SLACK_WORDS",
    "DeviceLayer",
    "all_units",
    "is_narrow",
    "is_wide",
    "layer_on_device",
    "resident_layer",
    "v_planes",
]

# Leading units of K whose H planes the decode kernel reads: the widest, when calibration has
# ordered the channels. A layer with many tiles beyond that reads the H planes of all units.
NARROW_UNITS = 8
_MANY = 1 / 8

# Words that a kernel may touch, without using them, from the start of any section.
SLACK_WORDS = 16_384


@dataclass(frozen=True)
class DeviceLayer:
    """Pages of one layer on a device.

    Attributes:
        words: uint32, the sections.
        bases: int64 [pages, heads], first word of each.
        descriptors: int32 [pages, heads, DESCRIPTOR_WORDS].
        directory: int32 [pages, heads, DIRECTORY_WORDS].
        order: int16 [heads, head_dim], stored to natural channel of K.
        step, inv_step: float32 [heads, head_dim], of K by natural channel.
        steps: float32 [heads, 256], scale of each scale code of rotated V.
        spread: float32 [heads, 2], step of rotated V at scale code 0, and the middle of its codes.
        wide_units: of how many leading units of K the directory's H bitmaps may speak.
        v_planes: modes of planes A, C and B of V: absent, of every head, or of some.
        span: size of the Hadamard matrix that V is rotated by; 1 when it is not.
    """

    words: torch.Tensor
    bases: torch.Tensor
    descriptors: torch.Tensor
    directory: torch.Tensor
    order: torch.Tensor
    step: torch.Tensor
    inv_step: torch.Tensor
    steps: torch.Tensor
    spread: torch.Tensor
    wide_units: int
    v_planes: tuple[int, int, int]
    span: int

    @staticmethod
    def of(tensors: Sequence[torch.Tensor], modes: Sequence[int]) -> "DeviceLayer":
        """The layer whose `tensors` and `modes` these are."""
        words, bases, descriptors, directory, order, step, inv_step, steps, spread = tensors
        wide_units, a, c, b, span = modes
        return DeviceLayer(
            *(words, bases, descriptors, directory, order, step, inv_step, steps, spread),
            wide_units=wide_units,
            v_planes=(a, c, b),
            span=span,
        )

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in the order of the attributes: what an operator of torch takes."""
        return [
            *(self.words, self.bases, self.descriptors, self.directory),
            *(self.order, self.step, self.inv_step, self.steps, self.spread),
        ]

    @property
    def modes(self) -> list[int]:
        """All that is not a tensor, as an operator of torch takes it."""
        return [self.wide_units, *self.v_planes, self.span]

    @property
    def heads(self) -> int:
        return self.order.shape[0]

    @property
    def head_dim(self) -> int:
        return self.order.shape[1]

    @property
    def padded(self) -> int:
        """Channels that kernels reckon with: a power of two, at least 64."""
        return max(64, 1 << (self.head_dim - 1).bit_length())

    @property
    def middle(self) -> torch.Tensor:
        """float32 [heads]: half a level below the middle of the codes of V."""
        return self.spread[:, 1].contiguous()

    def unpack(
        self, pages: torch.Tensor, *, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [heads, pages · 64, head_dim] of pages, int32 [pages]; see `unpack_pages`."""
        found: tuple[torch.Tensor, torch.Tensor] = unpack(
            *(self.words, self.bases, self.descriptors, pages),
            [self.order, self.step, self.steps, self.middle],
            *(self.span, dtype),
        )
        return found


def resident_layer(
    layer: PackedLayer, pages: NDArray[np.int32], device: torch.device
) -> DeviceLayer:
    """Copies pages of a layer to a device; page i there is pages[i] here.

    Args:
        layer: pages in host memory.
        pages: int32 [n], distinct page slots.
        device: where kernels run.
    """
    bases, descriptors = layer.bases[pages], layer.descriptors[pages]
    words, bases = _gather(layer.words, bases, descriptors[..., tile.WORDS])
    directory, wide_units = _directory(words, bases, descriptors, layer.head_dim)
    return layer_on_device(
        layer.plan,
        *(torch.from_numpy(part).to(device) for part in (words, bases, descriptors, directory)),
        wide_units=wide_units,
    )


def layer_on_device(
    plan: LayerPlan,
    words: torch.Tensor,
    bases: torch.Tensor,
    descriptors: torch.Tensor,
    directory: torch.Tensor,
    *,
    wide_units: int,
) -> DeviceLayer:
    """Pages that are on a device already, with the codec's parameters beside them."""
    device, levels = words.device, plan.levels

    def copy(array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(device)

    return DeviceLayer(
        words=words,
        bases=bases,
        descriptors=descriptors,
        directory=directory,
        order=copy(plan.order),
        step=copy(plan.step),
        inv_step=copy(plan.inv_step),
        steps=copy(np.stack([_steps(int(count)) for count in levels])),
        spread=copy(np.array([_spread(int(count)) for count in levels], np.float32)),
        wide_units=wide_units,
        v_planes=v_planes(levels.tolist()),
        span=rotation_span(plan.head_dim) if levels.any() else 1,
    )


def v_planes(levels: Sequence[int]) -> tuple[int, int, int]:
    """Modes of planes A, C and B of V over heads of so many levels; 0 levels have no planes."""

    def mode(having: set[int]) -> int:
        found = [count in having for count in levels]
        return (tile.DENSE if all(found) else tile.SPARSE) if any(found) else tile.ABSENT

    return mode({4, 8, 16}), mode({2, 8}), mode({16})


def _gather(
    words: NDArray[np.uint32], bases: NDArray[np.int64], lengths: NDArray[np.int32]
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Sections one after the other, with slack at the end, and where each begins."""
    runs: Sequence[NDArray[np.uint32]] = [
        words[base : base + length]
        for base, length in zip(bases.reshape(-1), lengths.reshape(-1), strict=True)
    ]
    ends = np.cumsum(lengths.reshape(-1), dtype=np.int64)
    gathered = np.concatenate([*runs, np.zeros(SLACK_WORDS, np.uint32)])
    return gathered, (ends - lengths.reshape(-1)).reshape(bases.shape)


def _directory(
    words: NDArray[np.uint32],
    bases: NDArray[np.int64],
    descriptors: NDArray[np.int32],
    head_dim: int,
) -> tuple[NDArray[np.int32], int]:
    every = all_units(head_dim)
    rows = directory_rows(words, bases, descriptors, wide_units=every)
    narrow = is_narrow(rows)
    if is_wide(int(narrow.sum()), narrow.size):
        return rows, every
    rows[~narrow] = 0
    return rows, NARROW_UNITS


def all_units(head_dim: int) -> int:
    """Units of K that a decode kernel for any pages reads the H planes of."""
    return min(MAX_UNITS, max(16, 1 << (head_dim // tile.K_UNIT - 1).bit_length()))


def is_narrow(rows: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Of each row of a directory, whether H planes end within the leading units."""
    narrow: NDArray[np.bool_] = (
        rows[..., K_BITMAPS + 3].view(np.uint32) >> np.uint32(NARROW_UNITS) == 0
    )
    return narrow


def is_wide(narrow: int, sections: int) -> bool:
    """Whether a layer's sections are better read with the H planes of all units."""
    return narrow < (1 - _MANY) * sections


def _steps(levels: int) -> NDArray[np.float32]:
    return scale_tables(levels)[0] if levels else np.zeros(256, np.float32)


def _spread(levels: int) -> tuple[float, float]:
    if not levels:
        return 0.0, 0.0
    # an octave is 16 codes
    return float(scale_tables(levels)[0][16]) / 2, (levels - 1) / 2
