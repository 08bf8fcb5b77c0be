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
    rounds alike. The first spans go two at a time, over groups of a fixed size, because a
    compiler makes vectors of those.
    """
    span = len(row) & -len(row)
    width = 4
    if span >= 16:
        width = 16
        for start in range(0, len(row), 16):
            _rotate_sixteen(row, start)
    else:
        for start in range(0, len(row), 4):
            _rotate_four(row, start)
    while width < span:
        for start in range(0, len(row), 2 * width):
            for i in range(start, start + width):
                a, b = row[i], row[i + width]
                row[i], row[i + width] = a + b, a - b
        width *= 2
    factor = np.float32(1 / math.sqrt(span))
    for i in range(len(row)):
        row[i] *= factor


@compiled
def _rotate_four(row: NDArray[np.float32], start: int) -> None:
    """Spans 1 and 2."""
    a, b = row[start] + row[start + 1], row[start] - row[start + 1]
    c, d = row[start + 2] + row[start + 3], row[start + 2] - row[start + 3]
    row[start], row[start + 2] = a + c, a - c
    row[start + 1], row[start + 3] = b + d, b - d


@compiled
def _rotate_sixteen(row: NDArray[np.float32], start: int) -> None:
    """Spans 1, 2, 4 and 8."""
    for group in range(start, start + 16, 4):
        _rotate_four(row, group)
    for i in range(start, start + 4):
        a, b = row[i] + row[i + 4], row[i] - row[i + 4]
        c, d = row[i + 8] + row[i + 12], row[i + 8] - row[i + 12]
        row[i], row[i + 8] = a + c, a - c
        row[i + 4], row[i + 12] = b + d, b - d
