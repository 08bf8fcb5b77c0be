"""The residual: what is held, in which memory, and how little of it moves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig
from packkv_kernels.format import KVDtype
from packkv_kernels.paged_cache import ExactTokens, PagedCache, SequenceCache
from packkv_kernels.paged_cache.residual import ResidualBuffer

HEADS, HEAD_DIM = 2, 16
SHAPE = CacheShape(2, HEADS, HEAD_DIM)


def tokens(count: int, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V [heads, count, head_dim] that say which token they are."""
    keys = torch.arange(first, first + count, dtype=torch.float32)[None, :, None]
    keys = keys.expand(HEADS, count, HEAD_DIM)
    return keys, -keys


def held(residual: ResidualBuffer) -> list[int]:
    """Which tokens a residual holds, by K; V must agree."""
    keys, values = residual.first(residual.tokens)
    assert torch.equal(keys, -values)
    assert torch.equal(keys, keys[:1, :, :1].expand_as(keys))
    return [int(number) for number in keys[0, :, 0]]


CALLS = st.lists(
    st.tuples(st.sampled_from(["append", "drop", "keep", "fork"]), st.integers(0, 200)),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(CALLS)
def test_a_residual_holds_what_a_list_would(calls: list[tuple[str, int]]) -> None:
    residual, wanted, fed = ResidualBuffer(), list[int](), 0
    for name, number in [("append", 1), *calls]:
        if name == "append":
            residual.append(*tokens(number, first=fed))
            wanted += range(fed, fed + number)
            fed += number
        elif name == "drop":
            count = min(number, len(wanted))
            residual.drop_first(count)
            wanted = wanted[count:]
        elif name == "keep":
            residual.keep_first(number)
            wanted = wanted[:number]
        else:
            other, residual = residual, residual.fork()
            # who goes on writing changes nothing of the other's
            other.append(*tokens(70, first=10_000))
        assert residual.tokens == len(wanted)
        if wanted:
            assert held(residual) == wanted


@pytest.mark.parametrize("recent_window", [0, 40, 150])
def test_a_sequence_decodes_in_the_same_memory(recent_window: int) -> None:
    cache = PagedCache(
        SHAPE, CodecConfig.parse("raw"), None, capacity_bytes=1 << 22, kv_dtype=KVDtype.FLOAT32
    )
    row = SequenceCache(SHAPE, recent_window=recent_window)

    def step(count: int) -> list[ExactTokens]:
        exact = [row.append(layer, *tokens(count, row.tokens(layer))) for layer in range(2)]
        row.pack(cache)
        return exact

    def places(exact: list[ExactTokens]) -> list[int]:
        return [part.data_ptr() for own in exact for part in (own.keys, own.values)]

    step(1000)
    # the first blocks may find that there is too little room
    for _ in range(2 * BLOCK_TOKENS):
        first = step(1)
    room = first[0].keys.shape[1]
    assert recent_window + BLOCK_TOKENS <= room <= recent_window + 3 * BLOCK_TOKENS
    pages = len(row.pages)
    for _ in range(3 * BLOCK_TOKENS):
        exact = step(1)
        assert places(exact) == places(first)
        assert exact[1].keys.shape == (HEADS, room, HEAD_DIM)
    assert len(row.pages) == pages + 3
    last = exact[0].keys[0, exact[0].tokens - 1, 0]
    assert int(last) == 1000 + 5 * BLOCK_TOKENS - 1


def test_what_a_long_prefill_took_is_given_back() -> None:
    residual = ResidualBuffer()
    residual.append(*tokens(1000))
    residual.drop_first(960)
    keys, _ = residual.first(40)
    assert keys.untyped_storage().nbytes() == HEADS * BLOCK_TOKENS * HEAD_DIM * 4


def test_what_inference_mode_began_goes_on_without_it() -> None:
    residual = ResidualBuffer()
    with torch.inference_mode():
        residual.append(*tokens(10))
    weight = torch.ones(1, requires_grad=True)
    keys, values = tokens(1, first=10)
    exact = residual.append(keys * weight, values * weight)
    assert held(residual) == list(range(11))
    assert not exact.keys.requires_grad
