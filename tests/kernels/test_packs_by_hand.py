"""PackKV from the paper's text alone (arXiv 2512.24449), value by value, against the packs.

Nothing of `packkv_kernels.packs` is used on this side: plain numbers and lists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from packkv_kernels.config import CacheShape
from packkv_kernels.packs import (
    PACK_TOKENS,
    PackKVQuantizer,
    Repacker,
    Repacking,
    encode_packs,
    published_bytes,
)
from packkv_kernels.testing import random_kv

Token = list[int]

BLOCK = 64
# the ends and the middle of the paper's sweep: K 0.03 to 0.24, V 0.1 to 0.7
SCALES = [(0.03, 0.1), (0.09, 0.3), (0.24, 0.7)]


def quantise(token: Sequence[float], rel: float) -> Token:
    """Codes of a token: its own step over all heads, and an integer zero."""
    values = [np.float32(value) for value in token]
    step = np.float32(rel) * (max(values) - min(values))
    zero = np.rint(min(values) / step)
    return [int(np.rint(value / step) - zero) for value in values]


def bits_of(spread: int) -> int:
    return math.ceil(math.log2(spread + 1))


def greedy_order(tokens: list[Token], pack_tokens: int) -> list[int]:
    """One pack after the other: a seed like the mean, then whoever makes the pack widest least."""
    left, order = list(range(len(tokens))), []
    while left:
        channels = list(zip(*(tokens[i] for i in left), strict=True))
        mean = [round(sum(channel) / len(left)) for channel in channels]
        likeness = [cosine(tokens[i], mean) for i in left]
        pack = [left.pop(likeness.index(max(likeness)))]
        while left and len(pack) < pack_tokens:
            costs = [sum(widths([tokens[j] for j in [*pack, i]])) for i in left]
            pack.append(left.pop(costs.index(min(costs))))
        order += pack
    return order


def cosine(a: Token, b: Token) -> float:
    product = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / max(product, 1e-8)


def median_order(tokens: list[Token]) -> list[int]:
    medians = [sorted(token)[(len(token) - 1) // 2] for token in tokens]
    return sorted(range(len(tokens)), key=lambda i: -medians[i])


def widths(pack: list[Token]) -> list[int]:
    return [bits_of(max(channel) - min(channel)) for channel in zip(*pack, strict=True)]


def in_packs(blocks: list[list[Token]], pack_tokens: int) -> list[list[Token]]:
    return [block[i : i + pack_tokens] for block in blocks for i in range(0, BLOCK, pack_tokens)]


def counted_bytes(blocks: list[list[Token]], pack_tokens: int) -> int:
    """The paper's count of a layer: codes, and of each pack and channel a minimum and a width."""
    distinct = {value for block in blocks for token in block for value in token}
    minimum = math.ceil(math.log2(len(distinct)))
    metadata = minimum + math.ceil(math.log2(minimum + 1))
    packs = in_packs(blocks, pack_tokens)
    codes = sum(pack_tokens * sum(widths(pack)) for pack in packs)
    return (codes + metadata * len(packs) * len(blocks[0][0])) // 8


def stored_bytes(block: list[Token], pack_tokens: int) -> int:
    """What a block really takes: a minimum holds the largest integer, a byte says how wide."""
    minimum = bits_of(max(max(token) for token in block))
    packs = in_packs([block], pack_tokens)
    codes = sum(pack_tokens * sum(widths(pack)) for pack in packs)
    return 1 + math.ceil((codes + (minimum + bits_of(minimum)) * len(packs) * len(block[0])) / 8)


def ordered(k: list[Token], v: list[Token], repacking: Repacking, pack_tokens: int) -> list[int]:
    if repacking is Repacking.MEDIAN:
        return median_order(v)
    if repacking is Repacking.GREEDY:
        return greedy_order([a + b for a, b in zip(k, v, strict=True)], pack_tokens)
    return list(range(len(k)))


def quantised(exact: torch.Tensor, rel: float) -> tuple[list[NDArray[np.int32]], list[list[Token]]]:
    """Two blocks by the packs' quantiser and by hand; fails unless they are the same."""
    ours = PackKVQuantizer(rel).quantize(exact.numpy()).integers
    tokens = [quantise(token, rel) for token in exact.flatten(1).tolist()]
    assert ours.reshape(len(ours), -1).tolist() == tokens
    return np.split(ours, 2), [tokens[:BLOCK], tokens[BLOCK:]]


@pytest.mark.parametrize("repacking", Repacking)
@pytest.mark.parametrize("pack_tokens", PACK_TOKENS)
@pytest.mark.parametrize(("rel_k", "rel_v"), SCALES)
def test_integers_orders_and_bytes_are_the_paper_s(
    rel_k: float, rel_v: float, pack_tokens: int, repacking: Repacking
) -> None:
    keys, values = random_kv(CacheShape(1, 2, 8), 2 * BLOCK, dtype=torch.float32)
    our_k, k = quantised(keys[0], rel_k)
    our_v, v = quantised(values[0], rel_v)
    repacker = Repacker(repacking, pack_tokens)
    orders = [repacker.order(*pair).tolist() for pair in zip(our_k, our_v, strict=True)]
    assert orders == [ordered(*pair, repacking, pack_tokens) for pair in zip(k, v, strict=True)]
    for ours, by_hand in ((our_k, k), (our_v, v)):
        packed = [block[order] for block, order in zip(ours, orders, strict=True)]
        blocks = [[block[i] for i in order] for block, order in zip(by_hand, orders, strict=True)]
        assert published_bytes(packed, pack_tokens) == counted_bytes(blocks, pack_tokens)
        for found, block in zip(packed, blocks, strict=True):
            assert len(encode_packs(found, pack_tokens)) == stored_bytes(block, pack_tokens)
