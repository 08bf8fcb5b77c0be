"""KVComp: back within half a step, appended naturally, and every byte counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from packkv_kernels.config import CacheShape
from packkv_kernels.entropy import KVCompConfig, KVCompSide
from packkv_kernels.entropy.kvcomp import Units
from packkv_kernels.entropy.quantise import dequantise, quantise
from packkv_kernels.errors import InvalidInput
from packkv_kernels.testing import kvcomp_bound, random_kv

AXES = {"block": (1, 2), "channel": (1,), "token": (2,)}


def step_bound(
    blocks: NDArray[np.float32], rel: float, axes: tuple[int, ...]
) -> NDArray[np.float64]:
    found: NDArray[np.float64] = kvcomp_bound(torch.from_numpy(blocks).double(), rel, axes).numpy()
    return found


def random_values(tokens: int, heads: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    keys, _ = random_kv(CacheShape(1, heads, dim), tokens, seed=seed)
    found: NDArray[np.float32] = keys[0].float().numpy()
    return found


@pytest.mark.parametrize("units", ["block", "channel", "token"])
@pytest.mark.parametrize(
    ("heads", "dim"), [(1, 4), (3, 64), (8, 80), (1, 96), (2, 128), (1, 256), (2, 7)]
)
@pytest.mark.parametrize("rel", [1 / 255, 0.05, 0.3])
def test_values_come_back_within_half_a_step(units: str, heads: int, dim: int, rel: float) -> None:
    side = KVCompSide(rel, Units(units))
    if dim % 4:
        values = np.random.default_rng(0).normal(size=(192, heads, dim)).astype(np.float32)
    else:
        values = random_values(192, heads, dim)
    side.append(values[:128])
    side.append(values[128:])
    found = side.decode()
    assert found.shape == values.shape
    for head in range(heads):
        exact = values[:, head].reshape(3, 64, dim)
        error = np.abs(found[:, head].reshape(3, 64, dim).astype(np.float64) - exact)
        assert (error <= step_bound(exact, rel, AXES[units])).all()


@given(
    scale=st.floats(1e-7, 3e4), offset=st.floats(-3e4, 3e4), rel=st.floats(1 / 255, 0.5),
    axes=st.sampled_from(list(AXES.values())), constant=st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_any_range_is_quantised_within_half_a_step(
    scale: float, offset: float, rel: float, axes: tuple[int, ...], constant: bool
) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 64, 8))
    blocks = (offset + scale * noise * (not constant)).astype(np.float32)
    codes, units = quantise(blocks, np.float32(rel), axes)
    assert codes.max() <= np.ceil(1 / rel)
    found = dequantise(codes, units, axes)
    assert (np.abs(found.astype(np.float64) - blocks) <= step_bound(blocks, rel, axes)).all()


def test_later_blocks_use_the_prefill_s_codebook_and_escape_from_it() -> None:
    side = KVCompSide(0.01, Units.BLOCK)
    side.append(np.tile(np.linspace(-1, 1, 4, dtype=np.float32), (64, 1, 2)))
    book = side.codebook
    assert book is not None
    few = side.nbytes
    values = random_values(64, 1, 8, seed=3)
    side.append(values)
    assert side.codebook is book
    codes = np.unique(quantise(values.reshape(1, 64, 8), np.float32(0.01), (1, 2))[0])
    assert (book.lengths[codes] == 0).any()
    span = values.max() - values.min()
    assert np.abs(side.decode()[64:] - values).max() <= 0.0051 * span
    assert side.nbytes > few


def test_every_byte_is_counted() -> None:
    side = KVCompConfig(k_units="channel").keys()
    assert side.nbytes == 0
    side.append(random_values(256, 3, 64))
    assert side.codebook is not None
    book = len(side.codebook.to_bytes())
    # per block: 64 lengths of 16 bits, 64 units of 32; a 32-bit offset
    fixed = 12 * (64 * 2 + 64 * 4 + 4) + book
    bits = 8 * (side.nbytes - fixed) / (256 * 3 * 64)
    assert 1.5 < bits < 5.5


def test_heads_are_selected_with_their_past() -> None:
    side = KVCompSide(0.05, Units.TOKEN)
    side.append(random_values(128, 4, 16))
    before = side.decode()
    side.select_heads(np.array([2, 2, 0]))
    assert np.array_equal(side.decode(), before[:, [2, 2, 0]])
    side.append(random_values(64, 3, 16, seed=1))
    assert np.array_equal(side.decode()[:128], before[:, [2, 2, 0]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((63, 1, 8), np.float32), "multiple of 64"),
        (np.zeros((64, 8), np.float32), "multiple of 64"),
        (np.full((64, 1, 8), np.nan, np.float32), "finite"),
        (np.full((64, 1, 8), 7e4, np.float32), "65504"),
    ],
)
def test_what_cannot_be_quantised_is_refused(values: NDArray[np.float32], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        KVCompConfig().values().append(values)


@pytest.mark.parametrize(
    "settings_", [{"rel_k": 0.001}, {"rel_v": 0.6}, {"k_units": "token"}, {"buffer_tokens": 63}]
)
def test_parameters_beyond_their_limits_are_refused(settings_: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        KVCompConfig(**settings_)  # type: ignore[arg-type]
