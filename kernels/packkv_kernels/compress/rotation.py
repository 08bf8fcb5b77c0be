"""The rotation of V: an orthonormal Hadamard transform along head_dim, as fast butterflies."""

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.format.compiled import compiled

__all__ = ["rotate_row", "rotation", "rotation_span"]


def rotation_span(head_dim: int) -> int:
    """Size of the Hadamard matrix: the largest power of two that divides head_dim."""
    return head_dim & -head_dim


@cache
def rotation(head_dim: int) -> torch.Tensor:
    """H, float32 [head_dim, head_dim]: y = x · H, and x = y · H, for it is symmetric."""
    span = rotation_span(head_dim)
    block = torch.ones(1, 1)
    while len(block) < span:
        block = torch.cat([torch.cat([block, block], 1), torch.cat([block, -block], 1)])
    return torch.kron(torch.eye(head_dim // span), block * (1 / math.sqrt(span)))


@compiled
def rotate_row(row: NDArray[np.float32]) -> None:
    """Multiplies a row [head_dim] by H in place.

    Spans 1, 2, 4, … in this order, each butterfly (a + b, a − b), then one factor: every backend
    rounds alike. Spans 1 and 2 share a pass because four values fit the registers.
    """
    head_dim = len(row)
    span = head_dim & -head_dim
    for i in range(0, head_dim, 4):
        a, b = row[i] + row[i + 1], row[i] - row[i + 1]
        c, d = row[i + 2] + row[i + 3], row[i + 2] - row[i + 3]
        row[i], row[i + 2] = a + c, a - c
        row[i + 1], row[i + 3] = b + d, b - d
    width = 4
    while width < span:
        for start in range(0, head_dim, 2 * width):
            for i in range(start, start + width):
                a, b = row[i], row[i + width]
                row[i], row[i + width] = a + b, a - b
        width *= 2
    factor = np.float32(1 / math.sqrt(span))
    for i in range(head_dim):
        row[i] *= factor
