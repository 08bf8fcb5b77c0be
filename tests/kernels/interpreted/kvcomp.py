"""KVComp's kernels against the host's. Run by test_triton_interpreted.py; not a test file."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from packkv_kernels.entropy.kvcomp import KVCompSide, Units
from packkv_kernels.entropy.triton.attention import KVCompDecode
from packkv_kernels.entropy.triton.side import DeviceSide
from packkv_kernels.entropy.triton.slices import SLACK_WORDS
from packkv_kernels.errors import InvalidInput
from packkv_kernels.testing import assert_close, poisoned_memory

CPU = torch.device("cpu")


def sides(
    values: NDArray[np.float32], rel: float, units: Units, *, first: int = 64
) -> tuple[KVCompSide, DeviceSide]:
    """Both sides, after the first tokens, which make the codebook, and then all others."""
    right, found = KVCompSide(rel, units), DeviceSide(rel, units, CPU)
    for part in (values[:first], values[first:]):
        if len(part):
            right.append(part)
            found.append(torch.from_numpy(part))
    return right, found


def check_blocks(values: NDArray[np.float32], rel: float, units: Units) -> None:
    """The bits are those of the host, and so are the values, whichever way they are read."""
    right, found = sides(values, rel, units)
    assert right.codebook is not None
    assert found.codebook is not None
    assert np.array_equal(found.codebook.lengths, right.codebook.lengths)
    assert np.array_equal(found.offsets.numpy(), right.offsets)
    words = found.words[:-SLACK_WORDS].numpy()
    # what is kept: units, lengths and bits, without offsets and codebook
    size = right.nbytes - right.offsets.nbytes - len(right.codebook.to_bytes())
    assert words.nbytes == size
    assert np.array_equal(words, right.words)
    wanted = right.decode()
    for tree in (False, True):
        assert np.array_equal(found.decode(tree=tree).numpy(), wanted), (units, tree)


def normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def blocks() -> None:
    check_blocks(normal(128, 2, 18), 0.05, Units.CHANNEL)
    check_blocks(normal(64, 1, 33), 1 / 255, Units.BLOCK)
    check_blocks(normal(64, 1, 7), 0.15, Units.TOKEN)


def extremes() -> None:
    """Codes that the codebook has no word for, units without a range, both zeros, the largest."""
    values = normal(128, 1, 5)
    values[:64] = np.round(values[:64])
    check_blocks(values, 0.01, Units.TOKEN)
    values = np.zeros((64, 1, 4), np.float32)
    values[::2] *= -1
    values[:, 0, 1], values[:, 0, 2] = -3e-8, 65504
    values[::3, 0, 3] = -65504
    for units in Units:
        check_blocks(values, 0.5, units)


def attention() -> None:
    check_attention(17, Units.CHANNEL, tree=False, heads=2, rows=3)
    check_attention(5, Units.BLOCK, tree=True, heads=1, rows=9)


def check_attention(head_dim: int, units: Units, *, tree: bool, heads: int, rows: int) -> None:
    """Two sequences of unlike length, and one without a block."""
    kv = normal(2, 128, heads, head_dim)
    (right_keys, keys), (right_values, values) = (
        sides(kv[0], 0.05, units),
        sides(kv[1], 0.15, Units.TOKEN),
    )
    decode = KVCompDecode(keys, values, batch=3, rows=rows, splits=2, tree=tree)
    query = torch.randn(3, heads, rows, head_dim, generator=torch.manual_seed(0))
    table = torch.tensor([[1, 0], [1, 2**30], [2**30, 2**30]], dtype=torch.int32)
    pages = torch.tensor([2, 1, 0], dtype=torch.int32)
    out, lse = decode(query, table, pages, 0.25)
    assert (out[2] == 0).all()
    assert torch.isneginf(lse[2]).all()
    dense = [torch.from_numpy(side.decode()).double() for side in (right_keys, right_values)]
    for row, tokens in enumerate((slice(0, 128), slice(64, 128))):
        k, v = (part[tokens].transpose(0, 1) for part in dense)
        scores = query[row].double() @ k.transpose(1, 2) * 0.25
        assert_close(out[row], scores.softmax(-1) @ v, 2e-4, f"out of row {row}")
        assert_close(lse[row], scores.logsumexp(-1), 2e-4, f"lse of row {row}")


def refused() -> None:
    side = DeviceSide(0.05, Units.TOKEN, CPU)
    with pytest.raises(InvalidInput, match="no blocks"):
        KVCompDecode(side, side, batch=1, rows=1, splits=1)
    for values, message in (
        (torch.zeros(63, 1, 4), "multiple of 64"),
        (torch.zeros(64, 4), "multiple of 64"),
        (torch.full((64, 1, 4), float("nan")), "finite"),
        (torch.full((64, 1, 4), 7e4), "65504"),
    ):
        with pytest.raises(InvalidInput, match=message):
            side.append(values)
    side.append(torch.zeros(64, 1, 4))
    with pytest.raises(InvalidInput, match="by channel or block"):
        KVCompDecode(side, side, batch=1, rows=1, splits=1)
    with pytest.raises(InvalidInput, match=r"but before \(1, 4\)"):
        side.append(torch.zeros(64, 1, 8))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with poisoned_memory():
        for check in sys.argv[1:]:
            globals()[check]()
