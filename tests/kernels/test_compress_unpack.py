"""Unpacking into the packed domain: what attention multiplies with is what decoding gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from packkv_kernels.compress import decode_block, plan_layers, rotation
from packkv_kernels.compress.unpack import unpack_k_tile, unpack_v_tile
from packkv_kernels.config import CacheShape, CodecConfig
from packkv_kernels.format import read_payload, resident_sections
from packkv_kernels.testing import assert_close, encode_payloads, random_kv, random_profile

CODECS = [
    "hybrid",
    "hybrid:delta=0.05",
    "hybrid:delta=0.001",
    "packkv",
    "packkv:rel_k=0.004",
    "raw",
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("tokens", [2, 63, 64])
@pytest.mark.parametrize("dim", [4, 64, 80, 128])
@pytest.mark.parametrize("codec", CODECS)
def test_the_packed_domain_is_the_decoded_one_folded(
    codec: str, dim: int, tokens: int, dtype: torch.dtype
) -> None:
    shape = CacheShape(1, 2, dim)
    config, profile = CodecConfig.parse(codec), random_profile(shape)
    keys, values = random_kv(shape, tokens, dtype=dtype)
    payload = read_payload(encode_payloads(keys, values, config, profile)[0])
    decoded_k, decoded_v = (x[0].double() for x in decode_block(payload, config, profile))
    resident, (plan,) = resident_sections(payload), plan_layers(config, profile, shape)
    for head in range(2):
        order, levels = plan.order[head], int(plan.levels[head])
        k = np.full((64, dim), np.nan, np.float32)
        v = np.full((64, dim), np.nan, np.float32)
        base, row = resident.bases[head], resident.descriptors[head]
        unpack_k_tile(resident.words, base, row, order, plan.inv_step[head], k)
        unpack_v_tile(resident.words, base, row, levels, v)
        # what attention folds into the query brings the natural K back
        natural = torch.empty(64, dim, dtype=torch.float64)
        folded = k.astype(np.float64) * plan.step[head][order]
        natural[:, torch.from_numpy(order.astype(np.int64))] = torch.from_numpy(folded)
        bound = decoded_k[:, head].abs() * 1e-6 + 1e-12
        assert_close(natural[:tokens], decoded_k[:, head], bound, "K")
        turned = torch.from_numpy(v).double()
        if levels:
            turned = turned @ rotation(dim).double()
        bound = decoded_v[:, head].abs().amax(1, keepdim=True) * 1e-5 + 1e-12
        assert_close(turned[:tokens], decoded_v[:, head], bound, "V")
        assert (k[tokens:] == 0).all()
        assert (v[tokens:] == 0).all()


@pytest.mark.parametrize("dim", [4, 12, 64, 80, 96, 512])
def test_the_rotation_is_orthonormal_symmetric_and_what_the_butterflies_do(dim: int) -> None:
    from packkv_kernels.compress.rotation import rotate_row

    turn = rotation(dim)
    assert torch.equal(turn, turn.T)
    assert_close(turn @ turn, torch.eye(dim), 1e-6)
    rows = torch.randn(5, dim, generator=torch.Generator().manual_seed(0))
    turned = rows.clone()
    for row in turned.numpy():
        rotate_row(row)
    assert_close(turned, rows.double() @ turn.double(), 1e-5)
