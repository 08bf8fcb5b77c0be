"""From packed words to float32 in the packed domain: the hot loops of attention on the CPU.

In the packed domain a score is Σ q'[c] · out[t, c] with q'[c] = q[order[c]] · step[order[c]], and
V is rotated if its codec rotates it; exact tokens and raw tiles are brought there too, so that
attention knows no special case.
"""

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.compress.rotation import rotate_row
from packkv_kernels.compress.unpack_codes import unpack_codes
from packkv_kernels.format import tile
from packkv_kernels.format.compiled import compiled
from packkv_kernels.format.layout import is_raw

__all__ = ["read_row", "unpack_k_tile", "unpack_v_tile"]

_K_SIDE, _V_SIDE = tile.K_SIDE, tile.V_SIDE


@compiled
def unpack_k_tile(
    words: NDArray[np.uint32],
    base: int,
    descriptor: NDArray[np.int32],
    order: NDArray[np.int16],
    inv_step: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Writes packed-domain K of one section; rows past its tokens are 0.

    Args:
        words: u32 words that hold the section.
        base: word where the section begins.
        descriptor: int32 [DESCRIPTOR_WORDS], from the validator.
        order: [head_dim], stored to natural channel; the identity unless the codec is hybrid.
        inv_step: [head_dim], by natural channel; ones unless the codec is hybrid.
        out: [64, head_dim], overwritten.
    """
    exact = descriptor[tile.SINKS]
    natural = np.empty(len(order), np.float32)
    if holds_values(descriptor, _K_SIDE):
        exact = descriptor[tile.TOKENS]
    else:
        unpack_codes(words, base, descriptor, _K_SIDE, 0, out)
    for t in range(exact):
        read_row(words, base, descriptor, _K_SIDE, t, natural)
        for c in range(len(order)):
            out[t, c] = natural[order[c]] * inv_step[order[c]]
    out[descriptor[tile.TOKENS] :] = 0


@compiled
def unpack_v_tile(
    words: NDArray[np.uint32],
    base: int,
    descriptor: NDArray[np.int32],
    levels: int,
    out: NDArray[np.float32],
) -> None:
    """Writes packed-domain V of one section; rows past its tokens are 0.

    Args:
        words, base, descriptor: like `unpack_k_tile`.
        levels: of rotated V; 0 for codecs that do not rotate it.
        out: [64, head_dim], overwritten.
    """
    exact = descriptor[tile.SINKS]
    if holds_values(descriptor, _V_SIDE):
        exact = descriptor[tile.TOKENS]
    else:
        unpack_codes(words, base, descriptor, _V_SIDE, levels, out)
    for t in range(exact):
        read_row(words, base, descriptor, _V_SIDE, t, out[t])
        if levels:
            rotate_row(out[t])
    out[descriptor[tile.TOKENS] :] = 0


@compiled
def holds_values(descriptor: NDArray[np.int32], side: int) -> bool:
    """Whether all tokens of a side are stored as values: a raw tile, or the `raw` codec."""
    return bool(descriptor[tile.STORAGE] != tile.TILE or is_raw(descriptor[tile.FLAGS], side))


@compiled
def read_row(
    words: NDArray[np.uint32],
    base: int,
    descriptor: NDArray[np.int32],
    side: int,
    token: int,
    out: NDArray[np.float32],
) -> None:
    """Reads one stored-as-value token of K or V into out [head_dim], natural channel order."""
    head_dim = descriptor[tile.HEAD_DIM]
    storage = descriptor[tile.STORAGE]
    if holds_values(descriptor, side):
        start = descriptor[side + tile.PLANE_A]
    else:
        start = descriptor[tile.K_EXACT if side == _K_SIDE else tile.V_EXACT]
    bits = out.view(np.uint32)
    if storage == tile.FLOAT32:
        at = base + start + token * head_dim
        for c in range(head_dim):
            bits[c] = words[at + c]
        return
    at = base + start + token * (head_dim // 2)
    if storage == tile.BFLOAT16:
        for i in range(head_dim // 2):
            bits[2 * i] = words[at + i] << np.uint32(16)
            bits[2 * i + 1] = words[at + i] & np.uint32(0xFFFF0000)
        return
    for i in range(head_dim // 2):
        bits[2 * i] = _widen(words[at + i] & np.uint32(0xFFFF))
        bits[2 * i + 1] = _widen(words[at + i] >> np.uint32(16))
    for c in range(head_dim):
        out[c] *= np.float32(2.0**112)


@compiled
def _widen(half: np.uint32) -> np.uint32:
    """A finite fp16 as the bits of a float32 2¹¹² times too small: exact, subnormals too."""
    return (half & np.uint32(0x8000)) << np.uint32(16) | (half & np.uint32(0x7FFF)) << np.uint32(13)
