"""LayerPlan: what a codec needs to know to turn one layer's K and V into integers and back."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.config import CacheShape, CodecConfig
from packkv_kernels.errors import InvalidInput, ProfileError
from packkv_kernels.profile import Profile

__all__ = ["LayerPlan", "plan_layers"]


@dataclass(frozen=True)
class LayerPlan:
    """Codec parameters of the KV heads of one layer.

    Attributes:
        config: the codec.
        order: int16 [heads, head_dim], stored to natural channel of K.
        step, inv_step: float32 [heads, head_dim], of K by natural channel.
        levels: uint8 [heads], of rotated V; 0 when V is not rotated.
    """

    config: CodecConfig
    order: NDArray[np.int16]
    step: NDArray[np.float32]
    inv_step: NDArray[np.float32]
    levels: NDArray[np.uint8]

    @property
    def heads(self) -> int:
        return int(self.order.shape[0])

    @property
    def head_dim(self) -> int:
        return int(self.order.shape[1])


# decoding block by block asks for the same plans again and again
@lru_cache(maxsize=8)
def plan_layers(
    config: CodecConfig, profile: Profile | None, shape: CacheShape, first_head: int = 0
) -> tuple[LayerPlan, ...]:
    """One plan per layer, for the KV heads from `first_head` on.

    Args:
        config: the codec.
        profile: of the whole model; ignored by codecs that need none.
        shape: what this rank holds: all layers, `shape.heads` heads.
        first_head: which KV head of the model is the rank's first.

    Raises:
        InvalidInput: the codec needs a profile and there is none.
        ProfileError: the profile is of another shape.
    """
    if not config.needs_profile:
        held = Profile.identity(shape)
    elif profile is None:
        raise InvalidInput(f"codec {config.name} needs a profile: calibrate the model first")
    else:
        found = profile.shape
        if (found.layers, found.head_dim) != (shape.layers, shape.head_dim):
            raise ProfileError(f"profile of {found} does not fit {shape}")
        held = profile.heads(first_head, shape.heads)
    step, inv_step = held.k_steps(config)
    levels = held.levels(config)
    return tuple(
        LayerPlan(config, held.k_order[layer], step[layer], inv_step[layer], levels[layer])
        for layer in range(shape.layers)
    )
