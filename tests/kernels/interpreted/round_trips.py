"""Every codec there and back within its stated bound, on one backend.

Used by test_round_trips.py; also run by it as a process of its own, because Triton decides when a
kernel is defined whether it is interpreted. Not a test file.
"""

from __future__ import annotations

import sys

import torch

from packkv_kernels.compress import decode_block, rotation
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig, HybridConfig, PackKVConfig
from packkv_kernels.entropy import KVCompConfig, KVCompSide
from packkv_kernels.entropy.kvcomp import Units
from packkv_kernels.format import read_payload
from packkv_kernels.profile import Profile
from packkv_kernels.testing import (
    assert_close,
    encode_payloads,
    halves_bound,
    hybrid_k_bound,
    hybrid_v_bound,
    kvcomp_bound,
    packkv_bound,
    random_kv,
    random_profile,
)

CODECS = ("raw", "hybrid", "packkv", "kvcomp")
# (tokens, heads, head_dim): around the edges of blocks, units of 2 and of 4 channels, no power of 2
SHAPES = ((1, 1, 4), (5, 3, 12), (64, 2, 20), (67, 1, 68))
SINKS = 4


def check(codec: str, backend: str, shape: tuple[int, int, int]) -> None:
    """Fails with the place of a value that is further off than the codec says."""
    if codec == "kvcomp":
        check_kvcomp(backend, *shape)
    else:
        check_payloads(CodecConfig.parse(codec), backend, *shape)


def check_payloads(config: CodecConfig, backend: str, tokens: int, heads: int, dim: int) -> None:
    shape = CacheShape(1, heads, dim)
    keys, values = random_kv(shape, tokens, dtype=torch.float32, seed=tokens)
    profile = random_profile(shape) if config.needs_profile else None
    payloads = encode_payloads(keys, values, config, profile, backend=backend)
    blocks = [decode_block(read_payload(data), config, profile, backend) for data in payloads]
    k, v = (torch.cat(parts, 1) for parts in zip(*blocks, strict=True))
    exact_k, exact_v = keys.double(), values.double()
    if isinstance(config, HybridConfig):
        assert profile is not None
        check_hybrid(config, profile, (k, v), (exact_k, exact_v))
    elif isinstance(config, PackKVConfig):
        assert_close(k, keys, packkv_bound(exact_k, config.rel_k), "K")
        assert_close(v, values, packkv_bound(exact_v, config.rel_v), "V")
    else:
        assert_close(k, keys, 0.0, "K")
        assert_close(v, values, 0.0, "V")


def check_hybrid(
    config: HybridConfig,
    profile: Profile,
    found: tuple[torch.Tensor, torch.Tensor],
    exact: tuple[torch.Tensor, torch.Tensor],
) -> None:
    (k, v), (keys, values) = found, exact
    assert_close(k, keys, hybrid_k_bound(keys, config, profile), "K")
    for side, wanted in zip(found, exact, strict=True):
        sinks = wanted[:, :SINKS]
        assert_close(side[:, :SINKS], sinks, halves_bound(sinks), "sink")
    turn = rotation(values.shape[-1]).double()
    rotated = values[:, SINKS:] @ turn
    bound = hybrid_v_bound(rotated, config.v_levels)
    assert_close(v[:, SINKS:].double() @ turn, rotated, bound, "rotated V")


def check_kvcomp(backend: str, tokens: int, heads: int, dim: int) -> None:
    """Whole blocks only, as many as the tokens begin; K by channel and by block, V by token."""
    whole = -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS
    keys, values = random_kv(CacheShape(1, heads, dim), whole, dtype=torch.float32, seed=tokens)
    config = KVCompConfig()
    for exact, rel, units in (
        (keys[0], config.rel_k, Units.CHANNEL),
        (keys[0], config.rel_k, Units.BLOCK),
        (values[0], config.rel_v, Units.TOKEN),
    ):
        found = through_kvcomp(backend, exact, rel, units)
        for head in range(heads):
            blocks = exact[:, head].reshape(-1, BLOCK_TOKENS, dim)
            bound = kvcomp_bound(blocks.double(), rel, units.axes)
            assert_close(found[:, head].reshape(blocks.shape), blocks, bound, units.value)


def through_kvcomp(backend: str, exact: torch.Tensor, rel: float, units: Units) -> torch.Tensor:
    if backend == "triton":
        from packkv_kernels.entropy.triton.side import DeviceSide

        there = DeviceSide(rel, units, torch.device("cpu"))
        there.append(exact)
        return there.decode()
    side = KVCompSide(rel, units)
    side.append(exact.numpy())
    return torch.from_numpy(side.decode())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for shape_ in SHAPES:
        check(sys.argv[1], "triton", shape_)
