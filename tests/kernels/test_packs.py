"""PackKV as published: the codec's integers, the paper's count, and bytes that come back."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from packkv_kernels.compress import decode_block
from packkv_kernels.config import CacheShape, PackKVConfig
from packkv_kernels.errors import InvalidInput, PayloadError
from packkv_kernels.format import read_payload
from packkv_kernels.packs import (
    PACK_TOKENS,
    PackKVQuantizer,
    Repacker,
    Repacking,
    decode_packs,
    encode_packs,
    published_bytes,
)
from packkv_kernels.testing import encode_payloads, random_kv

Integers = NDArray[np.int32]


def quantised(tokens: int = 64, heads: int = 3, dim: int = 64) -> tuple[Integers, Integers]:
    keys, values = random_kv(CacheShape(1, heads, dim), tokens, dtype=torch.float32)
    k = PackKVQuantizer(0.05).quantize(keys[0].numpy())
    v = PackKVQuantizer(0.15).quantize(values[0].numpy())
    return k.integers, v.integers


def brute_force_bits(rows: Integers, pack_tokens: int, minimum_bits: int) -> tuple[int, int]:
    """Bits of codes, and of minima and widths, counted value by value."""
    width_bits = math.ceil(math.log2(minimum_bits + 1))
    codes = metadata = 0
    for start in range(0, len(rows), pack_tokens):
        for channel in rows[start : start + pack_tokens].reshape(-1, rows[0].size).T:
            codes += math.ceil(math.log2(int(channel.max()) - int(channel.min()) + 1)) * len(
                channel
            )
            metadata += minimum_bits + width_bits
    return codes, metadata


@pytest.mark.parametrize("rel", [0.03, 0.1, 0.24, 0.7])
@pytest.mark.parametrize(("tokens", "heads", "dim"), [(64, 3, 64), (64, 1, 4), (37, 5, 80)])
def test_integers_are_those_of_the_codec(tokens: int, heads: int, dim: int, rel: float) -> None:
    keys, values = random_kv(CacheShape(1, heads, dim), tokens, dtype=torch.float32)
    config = PackKVConfig(rel_k=rel, rel_v=rel, sinks=0)
    (payload,) = encode_payloads(keys, values, config, backend="reference")
    decoded = decode_block(read_payload(payload), config, backend="reference")
    for exact, found in zip((keys, values), decoded, strict=True):
        ours = PackKVQuantizer(rel).quantize(exact[0].numpy())
        assert ours.integers.min() >= 0
        # equal floats after (integer + zero) · scale, for every value: the integers are equal
        np.testing.assert_array_equal(ours.values(), found[0].numpy())


def test_a_token_of_equal_values_comes_back_exactly() -> None:
    values = np.full((3, 2, 4), 2.5, np.float32)
    values[1] = 0
    np.testing.assert_array_equal(PackKVQuantizer(0.1).quantize(values).values(), values)


@pytest.mark.parametrize("rel", [0.0, 1.5, math.nan])
def test_a_step_beyond_the_limits_is_refused(rel: float) -> None:
    with pytest.raises(InvalidInput):
        PackKVQuantizer(rel)


@pytest.mark.parametrize("pack_tokens", PACK_TOKENS)
def test_the_published_count_is_that_of_a_brute_force(pack_tokens: int) -> None:
    blocks = np.split(quantised(192)[0], 3)
    distinct = len({int(value) for block in blocks for value in block.flat})
    parts = [brute_force_bits(b, pack_tokens, math.ceil(math.log2(distinct))) for b in blocks]
    assert published_bytes(blocks, pack_tokens) == sum(a + b for a, b in parts) // 8


@pytest.mark.parametrize("pack_tokens", PACK_TOKENS)
@pytest.mark.parametrize("tokens", [64, 61, 3])
def test_encoded_bytes_are_the_count_and_one(tokens: int, pack_tokens: int) -> None:
    integers, _ = quantised(tokens)
    bits = sum(brute_force_bits(integers, pack_tokens, int(integers.max()).bit_length()))
    assert len(encode_packs(integers, pack_tokens)) == 1 + math.ceil(bits / 8)


def test_the_count_refuses_packs_that_are_not_full() -> None:
    with pytest.raises(InvalidInput):
        published_bytes([quantised(60)[0]], 16)


@settings(max_examples=60)
@given(st.data())
def test_packs_come_back_bit_for_bit(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*(st.integers(1, n) for n in (70, 3, 9))), "shape")
    pack_tokens = data.draw(st.integers(1, 20), "pack_tokens")
    top = data.draw(st.sampled_from([0, 1, 2, 255, 1 << 20, (1 << 31) - 1]), "top")
    seed = data.draw(st.integers(0, 2**32 - 1), "seed")
    drawn = np.random.default_rng(seed).integers(0, top, shape, endpoint=True)
    integers = drawn.astype(np.int32)
    decoded = decode_packs(encode_packs(integers, pack_tokens), shape, pack_tokens)
    np.testing.assert_array_equal(decoded, integers)


def test_damaged_packs_are_refused() -> None:
    data = encode_packs(quantised(20, 1, 8)[0])
    for damaged in (b"", data[:1], data[:-1], data + b"\0", bytes([40]) + data[1:]):
        with pytest.raises(PayloadError):
            decode_packs(damaged, (20, 1, 8))


@pytest.mark.parametrize("method", Repacking)
@pytest.mark.parametrize("tokens", [1, 16, 60, 64])
def test_repacking_is_a_permutation(method: Repacking, tokens: int) -> None:
    order = Repacker(method).order(*quantised(tokens))
    assert sorted(order.tolist()) == list(range(tokens))


def test_median_sorts_by_the_lower_median_of_v() -> None:
    keys, values = quantised()
    order = Repacker(Repacking.MEDIAN).order(keys, values)
    medians = [torch.from_numpy(row).flatten().median().item() for row in values[order]]
    assert all(a >= b for a, b in pairwise(medians))


def test_greedy_takes_what_widens_a_pack_least() -> None:
    # two kinds of tokens, interleaved: packs of one kind have no spread at all
    kinds = np.array([[0, 9, 0, 9], [9, 0, 9, 0]], np.int32)
    block = kinds[np.arange(32) % 2].reshape(32, 1, 4)
    order = Repacker(Repacking.GREEDY, 16).order(block, block)
    assert {*(order[:16] % 2).tolist()} != {*(order[16:] % 2).tolist()}
    assert len(encode_packs(block[order])) < len(encode_packs(block))


def test_greedy_never_loses_to_no_repacking_where_tokens_drift() -> None:
    # a seeded measurement and no theorem: greedy choices can in principle end up wider
    keys, values = quantised()
    order = Repacker(Repacking.GREEDY).order(keys, values)
    before, after = (
        sum(len(encode_packs(side[tokens])) for side in (keys, values))
        for tokens in (np.arange(64), order)
    )
    assert after < before
