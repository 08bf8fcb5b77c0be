"""PackedLayer: what attention needs to know of the packed pages of one layer."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.compress.plan import LayerPlan
from packkv_kernels.compress.rotation import rotation


@dataclass(frozen=True)
class PackedLayer:
    """The packed pages of one layer, and how their codes relate to real K and V.

    Packed K of a token is in stored channel order and divided by its step; packed V is rotated.
    Both are folded away outside the loop over tokens: the query takes the order and the step, the
    output takes the rotation back.

    Attributes:
        words: uint32 [arena words], the arena that holds the pages.
        bases: int64 [pages, heads], first word of the section of each page slot and KV head.
        descriptors: int32 [pages, heads, DESCRIPTOR_WORDS], what the validator proved of them.
        plan: the codec's parameters for the layer.
    """

    words: NDArray[np.uint32]
    bases: NDArray[np.int64]
    descriptors: NDArray[np.int32]
    plan: LayerPlan

    @property
    def heads(self) -> int:
        return self.plan.heads

    @property
    def head_dim(self) -> int:
        return self.plan.head_dim

    def fold_query(self, query: torch.Tensor, scaling: float) -> torch.Tensor:
        """The query in the packed domain of K, grouped by KV head.

        Args:
            query: [q_heads, new, head_dim]; q_heads is a multiple of the KV heads.
            scaling: factor of the scores, usually head_dim ** -0.5.

        Returns:
            float32 [heads, group, new, head_dim] whose dot product with packed K is the score.
        """
        grouped = query.float().view(self.heads, -1, *query.shape[1:])
        weights = torch.from_numpy(self.plan.step)[:, None, None, :] * scaling
        channels = torch.from_numpy(self.plan.order.astype(np.int64))[:, None, None, :]
        return torch.gather(grouped * weights, 3, channels.expand(grouped.shape))

    def unrotate(self, out: torch.Tensor) -> torch.Tensor:
        """Takes the rotation of V back from an attention output [..., head_dim]."""
        # the Hadamard matrix is its own inverse
        return out @ rotation(self.head_dim) if self.plan.levels.any() else out
