"""Attention kernels against the reference. Run by test_triton_interpreted.py; not a test file."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch

from packkv_kernels.attention import PackedLayer, attend, reference
from packkv_kernels.attention.triton import DeviceLayer, PackedDecode, resident_layer
from packkv_kernels.compress import decode_block, plan_layers
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig
from packkv_kernels.format import KVDtype, read_payload, resident_sections
from packkv_kernels.paged_cache import PagedCache
from packkv_kernels.profile import Profile
from packkv_kernels.testing import assert_close, encode_payloads, random_kv, random_profile

# codes are exact; the query is rounded to fp16 once it is folded, p · scale too
BOUND = 4e-3

# Exact tokens of each row of a batch, before its new ones.
EXACT = (3, 20, 0, 33)

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


def check_attention(
    layer: PackedLayer,
    what: str,
    *,
    group: int,
    pages: int,
    new: int = 1,
    window: int | None = None,
) -> None:
    """A ragged batch: all pages, none, the last alone, all backwards; exact tokens after them."""
    generator = torch.manual_seed(1)
    slots = np.arange(pages, dtype=np.int32)
    tables = [slots, slots[:0], slots[-1:], slots[::-1].copy()]

    def normal(heads: int, tokens: int) -> torch.Tensor:
        return torch.randn(heads, tokens, layer.head_dim, generator=generator)

    queries = [normal(layer.heads * group, new) for _ in tables]
    keys, values = ([normal(layer.heads, new + extra) for extra in EXACT] for _ in range(2))
    found, wanted = (
        attend(
            queries, layer, tables, keys, values,
            scaling=layer.head_dim**-0.5, window=window, backend=backend,
        )
        for backend in ("triton", "reference")
    )  # fmt: skip
    for row, right in enumerate(wanted):
        assert_close(found[row], right, BOUND, f"{what}, row {row}")


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


def windowed() -> None:
    """Pages and parts of pages outside; sinks outside; rows that see no page, or only some do."""
    layer = packed_layer("hybrid", 1, 64, 2 * BLOCK_TOKENS)
    for new, window in ((1, 100), (3, 36), (3, 70), (17, 60)):
        what = f"{new} new, window {window}"
        check_attention(layer, what, group=1, pages=2, new=new, window=window)
    layer = packed_layer("packkv", 1, 64, BLOCK_TOKENS)
    check_attention(layer, "left aside", group=2, pages=1, new=2, window=60)


def widened() -> None:
    """A layer whose K turns out wide is read whole; who holds the old layer stays right."""
    shape, config = CacheShape(1, 1, 64), CodecConfig.parse("hybrid:delta=0.3")
    # without a profile's order wide units are anywhere
    profile = Profile.identity(shape)
    host, device = (
        PagedCache(
            shape, config, profile,
            capacity_bytes=1 << 18, kv_dtype=KVDtype.FLOAT32, backend=backend,
        )
        for backend in ("cpu", "triton")
    )  # fmt: skip
    before = device.layer(0)
    assert isinstance(before, DeviceLayer)
    kv = random_kv(shape, 2 * BLOCK_TOKENS, dtype=torch.float32)
    payloads = [read_payload(data) for data in encode_payloads(*kv, config, profile)]
    slots = [np.array([cache.adopt_all(payloads).pages[1].slot]) for cache in (host, device)]
    after = device.layer(0)
    assert isinstance(after, DeviceLayer)
    assert (before.wide_units, after.wide_units) == (8, 16)
    assert after.directory[slots[1][0]].any()
    query, *own = (torch.randn(1, 1, 64, generator=torch.manual_seed(seed)) for seed in range(3))
    exact = ([own[0]], [own[1]])
    (right,) = attend(
        [query], host.layer(0), [slots[0]], *exact, scaling=0.125, backend="reference"
    )
    for layer in (before, after):
        (found,) = attend([query], layer, [slots[1]], *exact, scaling=0.125)
        assert_close(found, right, BOUND, f"{layer.wide_units} wide units")


def left_aside() -> None:
    check_codec("packkv", 1, 2, 64, 2, last=3)
    check_codec("packkv:rel_k=0.5,rel_v=1", 1, 1, 64, 1, last=9)
    check_codec("raw", 1, 2, 96, 1, last=33)
    check_codec("hybrid", 1, 1, 256, 1, last=21)
    check_codec("hybrid:delta=8,v_levels=2", 1, 1, 256, 1, last=12)


def unpacked() -> None:
    check_codec("hybrid", 1, 1, 64, 1, new=17)
    shape = CacheShape(1, 2, 80)
    narrow, wide = "hybrid:delta=8,v_levels=2", "hybrid:delta=0.3,v_levels=16"
    for codec in ("hybrid", narrow, wide, "packkv", "packkv:rel_k=0.01,rel_v=0.01", "raw"):
        config = CodecConfig.parse(codec)
        profile = random_profile(shape) if config.needs_profile else None
        cache = PagedCache(
            shape, config, profile,
            capacity_bytes=1 << 20, kv_dtype=KVDtype.FLOAT32, backend="cpu",
        )  # fmt: skip
        kv = random_kv(shape, BLOCK_TOKENS, dtype=torch.float32)
        payload = read_payload(encode_payloads(*kv, config, profile)[0])
        cache.adopt(payload)
        held = cache.layer(0)
        assert isinstance(held, PackedLayer)
        layer = resident_layer(held, np.zeros(1, np.int32), torch.device("cpu"))
        keys, values = layer.unpack(torch.zeros(1, dtype=torch.int32))
        right_keys, right_values = decode_block(payload, config, profile, backend="reference")
        right_keys, right_values = right_keys[0].transpose(0, 1), right_values[0].transpose(0, 1)
        # the same float32 operations: the same bits
        assert torch.equal(keys, right_keys), codec
        # those of rotated V are fewer, and exact but for the last two: the reference rounds more
        bound = 1e-6 * float(right_values.abs().max()) if codec.startswith("hybrid") else 0.0
        assert_close(values, right_values, bound, codec)


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    for check in sys.argv[1:]:
        globals()[check]()
