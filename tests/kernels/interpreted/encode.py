"""Encode kernels against the reference. Run by test_triton_interpreted.py; not a test file."""

from __future__ import annotations

import sys

import numpy as np
import torch

from packkv_kernels.compress import encode_layer
from packkv_kernels.compress.plan import plan_layers
from packkv_kernels.compress.triton.blocks import Encoder
from packkv_kernels.config import CacheShape, CodecConfig
from packkv_kernels.format import read_payload, resident_sections
from packkv_kernels.testing import encode_payloads, random_kv, random_profile


def check_bytes(
    codec: str,
    heads: int,
    head_dim: int,
    tokens: int,
    *,
    dtype: torch.dtype = torch.float32,
    factor: float = 1.0,
    first_token: int = 0,
) -> None:
    """The bytes are those of the reference."""
    shape, config = CacheShape(1, heads, head_dim), CodecConfig.parse(codec)
    profile = random_profile(shape) if config.needs_profile else None
    keys, values = random_kv(shape, tokens, dtype=torch.float32, seed=tokens)
    keys, values = ((part[0] * factor).clamp(-6e4, 6e4).to(dtype) for part in (keys, values))
    wanted, found = (
        encode_layer(
            keys, values, layer=0, config=config, profile=profile,
            first_token=first_token, backend=backend,
        )
        for backend in ("reference", "triton")
    )  # fmt: skip
    assert found == wanted, f"{codec} {heads}×{head_dim}, {tokens} tokens"


def hybrid() -> None:
    check_bytes("hybrid", 2, 64, 70)
    check_bytes("hybrid", 1, 128, 64, dtype=torch.float16, first_token=64)
    check_bytes("hybrid:delta=0.5,v_levels=16", 1, 96, 64)
    for tokens in (1, 2, 3):
        check_bytes("hybrid:v_levels=4", 1, 80, tokens)
    check_bytes("hybrid", 1, 4, 65, first_token=64)


def hybrid_widths() -> None:
    """All widths and all levels of V, and heads larger than a word of units."""
    check_bytes("hybrid:delta=8,v_levels=2", 2, 64, 70)
    check_bytes("hybrid:delta=3,v_levels=2", 1, 128, 64, dtype=torch.bfloat16)
    check_bytes("hybrid:delta=0.25,v_levels=16", 1, 64, 64)
    check_bytes("hybrid:delta=4", 1, 256, 66, dtype=torch.bfloat16)
    # every value alike: no range, but a minimum
    check_bytes("hybrid:sinks=0", 1, 16, 5, factor=0.0)


def hybrid_raw() -> None:
    # codes past 8 bits, then a mean square past the last scale code, then both
    check_bytes("hybrid:delta=0.02", 1, 64, 64)
    check_bytes("hybrid", 2, 64, 65, factor=1000)
    check_bytes("hybrid:sinks=0", 1, 12, 7, factor=1e5)


def packkv() -> None:
    check_bytes("packkv", 2, 64, 67)
    check_bytes("packkv:rel_k=0.002", 1, 128, 64, first_token=64)
    check_bytes("packkv", 3, 12, 3)
    check_bytes("packkv:rel_k=0.5,rel_v=1", 1, 80, 64)
    # tokens that are all alike, and all zeros
    check_bytes("packkv:sinks=0", 1, 16, 5, factor=0.0)


def layers() -> None:
    """Many layers in one launch, and descriptors that the validator would make."""
    shape, config = CacheShape(2, 2, 64), CodecConfig.parse("hybrid")
    profile = random_profile(shape)
    keys, values = random_kv(shape, 128, dtype=torch.float16)
    encode = Encoder(plan_layers(config, profile, shape), torch.device("cpu"))
    found = encode(keys, values, 0)
    starts = found.starts.tolist()
    words = found.words.numpy()
    payloads = encode_payloads(keys, values, config, profile, backend="reference")
    for block, data in enumerate(payloads):
        right = resident_sections(read_payload(data))
        for section in range(4):
            layer, head = divmod(section, 2)
            place = (layer * 2 + block) * 2 + head
            row = right.descriptors[section]
            base = right.bases[section]
            assert np.array_equal(found.descriptors[layer, block, head].numpy(), row)
            ours = words[starts[place] : starts[place + 1]]
            assert np.array_equal(ours, right.words[base : base + len(ours)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]]()
