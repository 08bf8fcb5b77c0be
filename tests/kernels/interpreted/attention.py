"""Attention kernels against the reference. Run by test_triton_interpreted.py; not a test file."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch

from packkv_kernels.attention import PackedLayer, attend, reference
from packkv_kernels.attention.triton import packed_states, resident_layer
from packkv_kernels.attention.triton.decode import PackedDecode
from packkv_kernels.compress import decode_block, plan_layers
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig
from packkv_kernels.format import KVDtype, read_payload, resident_sections
from packkv_kernels.paged_cache import PagedCache
from packkv_kernels.testing import assert_close, encode_payloads, random_kv, random_profile

# codes are exact; the query is rounded to fp16 once it is folded, p · scale too
BOUND = 4e-3

# Poisoned words between two pages.
GAP = 64


def packed_layer(
    codec: str, heads: int, head_dim: int, tokens: int, v_levels: tuple[int, ...] = ()
) -> PackedLayer:
    """Pages in slots 0, 1, … of an arena that is poisoned wherever no page is.

    Args:
        v_levels: of each head; the codec's own if there are none.
    """
    shape, config = CacheShape(1, heads, head_dim), CodecConfig.parse(codec)
    profile = random_profile(shape) if config.needs_profile else None
    if profile is not None and v_levels:
        profile = replace(profile, v_levels=np.array([v_levels], np.uint8))
    kv = random_kv(shape, tokens, dtype=torch.float32)
    pages = [
        resident_sections(read_payload(data)) for data in encode_payloads(*kv, config, profile)
    ]
    ends = np.cumsum([GAP + len(page.words) for page in pages])
    words = np.full(ends[-1] + GAP, 0x7FC07FC1, np.uint32)
    for end, page in zip(ends, pages, strict=True):
        words[end - len(page.words) : end] = page.words
    bases = [end - len(page.words) + page.bases for end, page in zip(ends, pages, strict=True)]
    descriptors = np.stack([page.descriptors for page in pages])
    return PackedLayer(
        words, np.stack(bases), descriptors, plan_layers(config, profile, shape)[0]
    )  # fmt: skip


def check_attention(layer: PackedLayer, what: str, *, group: int, pages: int, new: int = 1) -> None:
    """A ragged batch: all pages, none, the last alone, all backwards."""
    query = torch.randn(
        layer.heads * group, new, layer.head_dim, generator=torch.manual_seed(1)
    )  # fmt: skip
    slots = np.arange(pages, dtype=np.int32)
    tables = [slots, slots[:0], slots[-1:], slots[::-1].copy()]
    scaling = layer.head_dim**-0.5
    found = packed_states([query] * 4, layer, tables, scaling)
    wanted = reference.packed_states([query] * 4, layer, tables, scaling)
    assert found[1] is None
    for row in (0, 2, 3):
        state, right = found[row], wanted[row]
        assert state is not None
        assert right is not None
        assert_close(state.out, right.out, BOUND, f"{what} out of row {row}")
        assert_close(state.lse, right.lse, BOUND, f"{what} lse of row {row}")


def check_codec(
    codec: str, heads: int, group: int, head_dim: int, pages: int, *, last: int = 64, new: int = 1
) -> None:
    """Of so many pages, the last of `last` tokens."""
    layer = packed_layer(codec, heads, head_dim, (pages - 1) * BLOCK_TOKENS + last)
    check_attention(layer, f"{codec}, {head_dim}, {last}", group=group, pages=pages, new=new)


def fast() -> None:
    check_codec("hybrid", 2, 3, 64, 5)
    check_codec("hybrid", 1, 4, 128, 5)
    check_codec("hybrid:v_levels=4", 2, 1, 80, 2, last=3)
    check_codec("hybrid:delta=0.6,v_levels=16", 1, 16, 128, 2, last=33)


def narrow() -> None:
    """Units without a bit, with one, with two; V of one bit; heads of unlike levels."""
    check_codec("hybrid:delta=8,v_levels=2", 1, 2, 128, 2, last=2)
    check_codec("hybrid:delta=4,v_levels=2", 1, 2, 64, 3, last=1)
    check_codec("hybrid:delta=3", 1, 2, 96, 1)
    for head_dim in (64, 128):
        layer = packed_layer("hybrid:delta=2", 4, head_dim, 70, v_levels=(2, 4, 8, 16))
        check_attention(layer, f"2, 4, 8, 16 levels, {head_dim}", group=1, pages=2)
    layer = packed_layer("hybrid", 2, 64, 64, v_levels=(2, 8))
    check_attention(layer, "2, 8 levels", group=1, pages=1)


def left_aside() -> None:
    check_codec("packkv", 1, 2, 64, 2, last=3)
    check_codec("packkv:rel_k=0.5,rel_v=1", 1, 1, 64, 1, last=9)
    check_codec("raw", 1, 2, 96, 1, last=33)
    check_codec("hybrid", 1, 1, 256, 1, last=21)
    check_codec("hybrid:delta=8,v_levels=2", 1, 1, 256, 1, last=12)


def unpacked() -> None:
    check_codec("hybrid", 1, 1, 64, 1, new=17)
    shape = CacheShape(1, 2, 80)
    for codec in ("hybrid", "hybrid:delta=8,v_levels=2", "packkv", "raw"):
        config = CodecConfig.parse(codec)
        profile = random_profile(shape) if config.needs_profile else None
        cache = PagedCache(shape, config, profile, capacity_bytes=1 << 20, kv_dtype=KVDtype.FLOAT32)
        kv = random_kv(shape, BLOCK_TOKENS, dtype=torch.float32)
        payload = read_payload(encode_payloads(*kv, config, profile)[0])
        cache.adopt(payload)
        layer = resident_layer(cache.layer(0), np.zeros(1, np.int32), torch.device("cpu"))
        keys, values = layer.unpack(torch.zeros(1, dtype=torch.int32))
        right_keys, right_values = decode_block(payload, config, profile, backend="reference")
        # the same float32 operations: the same bits
        assert torch.equal(keys, right_keys[0].transpose(0, 1)), codec
        assert torch.equal(values, right_values[0].transpose(0, 1)), codec


def poisoned() -> None:
    """Every output is written whatever was there, and a page beyond the count is not looked at."""
    layer = packed_layer("hybrid", 1, 64, 3 * BLOCK_TOKENS)
    resident = resident_layer(layer, np.arange(3, dtype=np.int32), torch.device("cpu"))
    decode = PackedDecode(resident, batch=2, rows=2, max_pages=6, splits=2)
    buffers = (decode.minima_scores, decode.means, decode.weights, decode.out, decode.lse)
    table = torch.full((2, 6), 2**30, dtype=torch.int32)
    table[0, :3] = torch.arange(3)
    pages = torch.tensor([3, 0], dtype=torch.int32)
    query = torch.randn(2, 1, 2, 64, generator=torch.manual_seed(2))
    results = []
    for _ in range(2):
        for buffer in buffers:
            buffer.fill_(float("nan"))
        out, lse = decode(query, table, pages, 0.125)
        results.append((out.clone(), lse.clone()))
    assert torch.isfinite(results[0][0]).all()
    assert torch.equal(results[0][0], results[1][0])
    assert torch.isneginf(results[0][1][1]).all()
    assert (results[0][0][1] == 0).all()
    slots = np.arange(3, dtype=np.int32)
    (right,) = reference.packed_states([query[0, 0][:, None]], layer, [slots], 0.125)
    assert right is not None
    assert_close(results[0][0][0, 0], right.out[:, 0], BOUND, "out")


def plugged_in() -> None:
    layer = packed_layer("hybrid", 1, 64, BLOCK_TOKENS)
    query = torch.randn(2, 1, 64, dtype=torch.float32, generator=torch.manual_seed(3))
    keys = torch.randn(1, 5, 64, generator=torch.manual_seed(4))
    table = [np.zeros(1, np.int32)]
    (found,), (right,) = (
        attend([query], layer, table, [keys], [keys], scaling=0.125, backend=backend)
        for backend in ("triton", "reference")
    )
    assert_close(found, right, BOUND, "attend")


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]]()
