"""Attention over pages and exact tokens: every backend against the reference, it against theory."""

import itertools

import numpy as np
import pytest
import torch

from packkv_kernels.attention import attend
from packkv_kernels.attention.cpu import FUSED_ROWS
from packkv_kernels.attention.state import dense_state, merge
from packkv_kernels.compress import decode_block
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig
from packkv_kernels.errors import InvalidInput
from packkv_kernels.format import KVDtype, read_payload
from packkv_kernels.paged_cache import Page, PagedCache
from packkv_kernels.paged_cache.arena import HostArena
from packkv_kernels.profile import Profile
from packkv_kernels.testing import assert_close, encode_payloads, random_kv, random_profile

CODECS = ["hybrid", "hybrid:delta=0.3,v_levels=16", "hybrid:v_levels=4", "packkv", "raw"]


class Packed:
    """A paged cache of one layer with random pages, and the K and V that it stands for."""

    def __init__(self, codec: str, heads: int, head_dim: int, pages: int, seed: int = 0) -> None:
        self.shape = CacheShape(1, heads, head_dim)
        config = CodecConfig.parse(codec)
        profile: Profile | None = random_profile(self.shape) if config.needs_profile else None
        self.cache = PagedCache(
            self.shape, config, profile, capacity_bytes=8 << 20, kv_dtype=KVDtype.FLOAT32
        )
        # what a kernel reads outside its pages must not matter: poison the arena
        arena = self.cache._arena
        assert isinstance(arena, HostArena)
        arena.data[:] = 0x7FC07FC1
        self.pages: list[Page] = []
        self.keys, self.values = torch.empty(heads, 0, head_dim), torch.empty(heads, 0, head_dim)
        if pages == 0:
            return
        kv = random_kv(self.shape, pages * BLOCK_TOKENS, dtype=torch.float32, seed=seed)
        payloads = [read_payload(data) for data in encode_payloads(*kv, config, profile)]
        # taken in backwards, so that the order of slots is not the order of tokens
        self.pages = [self.cache.adopt(payload) for payload in reversed(payloads)][::-1]
        decoded = [decode_block(payload, config, profile) for payload in payloads]
        self.keys = torch.cat([k[0].transpose(0, 1) for k, _ in decoded], 1)
        self.values = torch.cat([v[0].transpose(0, 1) for _, v in decoded], 1)

    def table(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return np.array([page.slot for page in self.pages], np.int32)


def plain_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
    window: int | None = None,
) -> torch.Tensor:
    """Causal softmax attention in float64, from its definition."""
    group = query.shape[0] // keys.shape[0]
    keys, values = (part.double().repeat_interleave(group, 0) for part in (keys, values))
    new, tokens = query.shape[1], keys.shape[1]
    scores = query.double() @ keys.transpose(1, 2) * scaling
    hidden = torch.ones(new, tokens, dtype=torch.bool).triu(tokens - new + 1)
    if window is not None:
        hidden |= torch.ones_like(hidden).tril(tokens - new - window)
    return (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values).float()


def random_case(
    heads: int, group: int, head_dim: int, new: int, residual: int, seed: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(heads * group, new, head_dim, generator=generator)
    keys = torch.randn(heads, residual + new, head_dim, generator=generator)
    return query, keys, torch.randn(heads, residual + new, head_dim, generator=generator)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("heads", "group", "head_dim", "new", "pages", "residual"),
    [
        (2, 3, 64, 1, 3, 0),
        (1, 1, 128, 1, 1, 63),
        (2, 4, 64, 2, 2, 5),
        (1, 16, 64, 1, 2, 1),
        (2, 2, 128, 33, 3, 17),
        (3, 1, 80, 7, 2, 2),
        (1, 5, 96, 64, 1, 30),
        (1, 2, 256, 1, 1, 4),
        (2, 3, 64, 40, 0, 20),
    ],
)
def test_it_is_softmax_attention_over_the_decoded_tokens(
    backend: str,
    codec: str,
    heads: int,
    group: int,
    head_dim: int,
    new: int,
    pages: int,
    residual: int,
) -> None:
    packed = Packed(codec, heads, head_dim, pages)
    query, keys, values = random_case(heads, group, head_dim, new, residual)
    scaling = head_dim**-0.5
    (found,) = attend(
        [query],
        packed.cache.layer(0),
        [packed.table()],
        [keys],
        [values],
        scaling=scaling,
        backend=backend,
    )
    wanted = plain_attention(
        query,
        torch.cat([packed.keys, keys], 1),
        torch.cat([packed.values, values], 1),
        scaling,
    )
    assert_close(found, wanted, 5e-4, f"{backend} {codec}")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("pages", [0, 3])
@pytest.mark.parametrize(("new", "residual"), [(1, 0), (1, 30), (5, 2), (40, 9)])
def test_a_window_hides_pages_and_parts_of_pages(
    backend: str, pages: int, new: int, residual: int
) -> None:
    packed = Packed("hybrid", 2, 64, pages)
    query, *exact = random_case(2, 2, 64, new, residual)
    whole = [
        torch.cat([past, own], 1)
        for past, own in zip((packed.keys, packed.values), exact, strict=True)
    ]
    tokens = whole[0].shape[1]
    # alone, in the exact tokens, across the last page, on and beside a page's edge, everything
    edge = residual + new + 64
    for window in (1, 7, residual + new + 20, edge - 1, edge, edge + 1, tokens, tokens + 9):
        (found,) = attend(
            [query],
            packed.cache.layer(0),
            [packed.table()],
            *([part] for part in exact),
            scaling=0.125,
            window=window,
            backend=backend,
        )
        wanted = plain_attention(query, whole[0], whole[1], 0.125, window)
        assert_close(found, wanted, 5e-4, f"window {window} of {tokens}")


def test_pages_outside_of_a_window_are_not_read() -> None:
    packed = Packed("hybrid", 1, 64, 3)
    query, *exact = random_case(1, 1, 64, 1, 0)
    own = [[part] for part in exact]
    layer, table = packed.cache.layer(0), packed.table()
    for backend in ("reference", "cpu"):
        first, second = (
            attend([query], layer, [pages], *own, scaling=0.125, window=65, backend=backend)[0]
            # a slot that there is not, in the place of pages that nobody sees
            for pages in (table, np.array([1 << 30, 1 << 30, table[2]], np.int32))
        )
        assert torch.equal(first, second)


@pytest.mark.parametrize("codec", ["hybrid", "packkv", "raw"])
def test_a_ragged_batch_is_its_rows_one_by_one(codec: str) -> None:
    packed = Packed(codec, 2, 64, 4)
    table = packed.table()
    tables = [table[:3], table[:0], table[1:2], table[:4], table[2:3]]
    cases = [random_case(2, 3, 64, new, 9, seed=new) for new in (1, 1, 6, 1, 1)]
    together = attend(
        [query for query, _, _ in cases],
        packed.cache.layer(0),
        tables,
        [keys for _, keys, _ in cases],
        [values for _, _, values in cases],
        scaling=0.125,
    )
    for (query, keys, values), own, found in zip(cases, tables, together, strict=True):
        (alone,) = attend(
            [query],
            packed.cache.layer(0),
            [own],
            [keys],
            [values],
            scaling=0.125,
            backend="reference",
        )
        assert_close(found, alone, 2e-4, "row")


def test_the_fused_and_the_unpacking_path_agree() -> None:
    packed = Packed("hybrid", 2, 64, 3)
    query, keys, values = random_case(2, 1, 64, FUSED_ROWS + 1, 0)
    arguments = (packed.cache.layer(0), [packed.table()])
    (unpacked,) = attend([query], *arguments, [keys], [values], scaling=0.125)
    for row in range(FUSED_ROWS + 1):
        (fused,) = attend(
            [query[:, row : row + 1]],
            *arguments,
            [keys[:, : row + 1]],
            [values[:, : row + 1]],
            scaling=0.125,
        )
        assert_close(fused[:, 0], unpacked[:, row], 1e-5, "row")


def test_the_dtype_of_the_query_comes_back() -> None:
    packed = Packed("hybrid", 2, 64, 1)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        case = [part.to(dtype) for part in random_case(2, 2, 64, 1, 3)]
        (found,) = attend(
            [case[0]], packed.cache.layer(0), [packed.table()], [case[1]], [case[2]], scaling=0.125
        )
        assert found.dtype is dtype


def test_scores_of_any_size_neither_overflow_nor_vanish() -> None:
    packed = Packed("raw", 1, 64, 2)
    query, keys, values = random_case(1, 1, 64, 1, 2)
    for factor in (1e-6, 1e4):
        (found,) = attend(
            [query * factor],
            packed.cache.layer(0),
            [packed.table()],
            [keys],
            [values],
            scaling=1.0,
        )
        wanted = plain_attention(
            query * factor,
            torch.cat([packed.keys, keys], 1),
            torch.cat([packed.values, values], 1),
            1.0,
        )
        assert_close(found, wanted, 1e-3, f"factor {factor}")


def test_subsets_of_the_tokens_merge_in_any_order() -> None:
    query, keys, values = random_case(2, 1, 64, 3, 21)
    cuts = [0, 5, 6, 24]
    parts = [
        dense_state(query[:, None], keys[:, a:b], values[:, a:b], causal=False)
        for a, b in itertools.pairwise(cuts)
    ]
    whole = dense_state(query[:, None], keys, values, causal=False)
    for first, second, third in itertools.permutations(parts):
        merged = merge(merge(first, second), third)
        assert_close(merged.out, whole.out, 1e-5, "out")
        assert_close(merged.lse, whole.lse, 1e-5, "lse")


def test_long_queries_are_cut_into_slabs_without_a_seam() -> None:
    heads, new, tokens = 64, 70, 5000
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(heads, 1, new, 4, generator=generator)
    keys = torch.randn(heads, tokens, 4, generator=generator)
    values = torch.randn(heads, tokens, 4, generator=generator)
    state = dense_state(query, keys, values, causal=True)
    assert_close(state.out, plain_attention(query[:, 0], keys, values, 1.0), 1e-4, "out")


def test_shapes_that_do_not_fit_are_refused_with_their_values() -> None:
    query, keys, values = random_case(2, 1, 64, 3, 0)
    with pytest.raises(InvalidInput, match="3 queries but only 2 exact tokens"):
        attend([query], None, [np.empty(0, np.int32)], [keys[:, :2]], [values[:, :2]], scaling=1)
    with pytest.raises(InvalidInput, match="2 query heads are not a multiple of 3"):
        attend(
            [query],
            None,
            [np.empty(0, np.int32)],
            [keys[:1].repeat(3, 1, 1)],
            [values[:1].repeat(3, 1, 1)],
            scaling=1,
        )
    with pytest.raises(InvalidInput, match="a window of 0 tokens"):
        attend([query], None, [np.empty(0, np.int32)], [keys], [values], scaling=1, window=0)
    with pytest.raises(InvalidInput, match="must both be"):
        attend([query], None, [np.empty(0, np.int32)], [keys], [values[:, :2]], scaling=1)
