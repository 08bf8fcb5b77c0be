"""Every kernel against the reference, on small tensors: nothing is timed before all is right."""

from __future__ import annotations

import numpy as np
import torch

from packkv.bench.kernels.gpu.cold import cold_payload
from packkv.bench.kernels.gpu.packed import decode_call, packed_layer
from packkv_kernels.attention import PackedLayer, reference
from packkv_kernels.attention.triton import resident_layer
from packkv_kernels.compress import encode_layer
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig, HybridConfig
from packkv_kernels.entropy import from_cold
from packkv_kernels.entropy.kvcomp import KVCompSide, Units
from packkv_kernels.entropy.triton.attention import KVCompDecode
from packkv_kernels.entropy.triton.cold import cold_to_resident
from packkv_kernels.entropy.triton.side import DeviceSide
from packkv_kernels.format import resident_sections
from packkv_kernels.testing import (
    assert_close,
    check_growing_decode,
    random_kv,
    random_profile,
)

__all__ = ["check_kernels"]

# Planes of every kind: also units without a bit, and with eight.
_SPELLED = (
    "hybrid",
    "hybrid:delta=4,v_levels=2",
    "hybrid:delta=0.3,v_levels=16",
    "packkv",
)


def check_kernels(device: torch.device, *, small: bool) -> None:
    """Encodes, attends and unpacks with every codec that has tiles; then KVComp, cold payloads, and
    a graph.

    Args:
        device: where kernels run.
        small: as little as touches all of the code.

    Raises:
        AssertionError: a result is not the reference's.
    """
    for spelled in _SPELLED[:1] if small else _SPELLED:
        for head_dim in (64,) if small else (64, 128):
            check_codec(spelled, head_dim, 1 if small else 2, device)
    check_kvcomp(16 if small else 128, 1 if small else 2, device)
    for spelled in ("packkv",) if small else ("packkv", *_SPELLED[:3]):
        for head_dim in (4,) if small else (64, 128):
            check_cold(spelled, CacheShape(4, 1 if small else 8, head_dim), device)
    check_growing_decode(device, rounds=1 if small else 3)


def check_codec(spelled: str, head_dim: int, heads: int, device: torch.device) -> None:
    """Encode to the byte, then decode attention and unpacking."""
    what = f"{spelled}, head_dim {head_dim}"
    shape, config = CacheShape(1, heads, head_dim), CodecConfig.parse(spelled)
    profile = random_profile(shape) if config.needs_profile else None
    keys, values = (part[0].to(device) for part in random_kv(shape, heads * BLOCK_TOKENS))
    found, right = (
        encode_layer(keys, values, layer=0, config=config, profile=profile, backend=backend)
        for backend in ("triton", "reference")
    )
    if found != right:
        raise AssertionError(f"{what}: other bytes")
    layer = packed_layer(config, profile, keys[None], values[None])
    check_attention(layer, device, what)
    check_unpacking(layer, device, what)


def check_attention(layer: PackedLayer, device: torch.device, what: str) -> None:
    """Decode attention over all pages, as the reference has it."""
    slots = np.arange(len(layer.bases), dtype=np.int32)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(layer.heads * 3, 1, layer.head_dim, generator=generator)
    (right,) = reference.packed_states([query], layer, [slots], layer.head_dim**-0.5)
    assert right is not None
    resident = resident_layer(layer, slots, device)
    out, lse = decode_call(resident, query.view(1, layer.heads, 3, -1).to(device), len(slots), 1)()
    config = layer.plan.config
    # the query is rounded to fp16 in units of the step, so that errors grow with a coarse one
    bound = 4e-3 * (max(1.0, config.delta) if isinstance(config, HybridConfig) else 1.0)
    assert_close(out.view(right.out.shape).cpu(), right.out, bound, f"{what}: out")
    assert_close(lse.view(right.lse.shape).cpu(), right.lse, bound, f"{what}: lse")


def check_unpacking(layer: PackedLayer, device: torch.device, what: str) -> None:
    """Unpacked K and V give the attention that the reference has."""
    slots = np.arange(len(layer.bases), dtype=np.int32)
    pages = torch.from_numpy(slots).to(device)
    keys, values = resident_layer(layer, slots, device).unpack(pages)
    query = torch.randn(layer.heads, 1, layer.head_dim, generator=torch.Generator().manual_seed(1))
    (right,) = reference.packed_states([query], layer, [slots], layer.head_dim**-0.5)
    assert right is not None
    scores = query @ keys.cpu().transpose(1, 2) * layer.head_dim**-0.5
    assert_close(scores.softmax(-1) @ values.cpu(), right.out, 1e-4, f"{what}: unpacked")


def check_kvcomp(head_dim: int, heads: int, device: torch.device) -> None:
    """KVComp's words to the bit, its values, and attention by table and by tree."""
    kv = random_kv(CacheShape(1, heads, head_dim), BLOCK_TOKENS, dtype=torch.float32)
    dense, found = [], []
    for part, rel, units in zip(kv, (0.05, 0.15), (Units.CHANNEL, Units.TOKEN), strict=True):
        host, side = KVCompSide(rel, units), DeviceSide(rel, units, device)
        host.append(part[0].numpy())
        side.append(part[0].to(device).contiguous())
        words = side.words[: len(host.words)].cpu().numpy()
        if not np.array_equal(words, host.words):
            raise AssertionError(f"kvcomp, {units.value}: other bits")
        values = torch.from_numpy(host.decode())
        for tree in (False, True):
            if not torch.equal(side.decode(tree=tree).cpu(), values):
                raise AssertionError(f"kvcomp, {units.value}: other values, tree={tree}")
        dense.append(values.transpose(0, 1))
        found.append(side)
    query = torch.randn(1, heads, 2, head_dim, generator=torch.Generator().manual_seed(2))
    right = (query[0] @ dense[0].transpose(1, 2) * 0.125).softmax(-1) @ dense[1]
    table = torch.zeros(1, 1, dtype=torch.int32, device=device)
    for tree in (False, True):
        decode = KVCompDecode(*found, batch=1, rows=2, splits=1, tree=tree)
        out, _ = decode(query.to(device), table, table[0] + 1, 0.125)
        assert_close(out[0].cpu(), right, 1e-3, f"kvcomp attention, tree={tree}")


def check_cold(spelled: str, shape: CacheShape, device: torch.device) -> None:
    """A cold payload, decoded on the device, to the word."""
    payload = cold_payload(spelled, shape)
    found = cold_to_resident([payload], device)
    found.prove()
    right = resident_sections(from_cold(payload))
    if not np.array_equal(found.words.cpu().numpy(), right.words):
        raise AssertionError(f"{spelled}, {shape}: other words come back from the cold form")
