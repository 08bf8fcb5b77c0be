"""Every codec, on every backend and shape: the same bytes, and back within the stated error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packkv_kernels.compress import decode_block, encode_layer, rotation
from packkv_kernels.compress.cpu_sections import encode_packkv_sections
from packkv_kernels.compress.scales import K_WIDTHS, RANGE_BOUNDS
from packkv_kernels.config import CacheShape, CodecConfig, HybridConfig, PackKVConfig
from packkv_kernels.errors import InvalidInput, PayloadError, ProfileError
from packkv_kernels.format import describe_sections, read_payload
from packkv_kernels.format.layout import plane_mode
from packkv_kernels.format.tile import DENSE, FLAGS, K_SIDE, PLANE_A, PLANE_H2, RAW_SHIFT
from packkv_kernels.profile import Profile
from packkv_kernels.testing import (
    assert_close,
    encode_payloads,
    halves_bound,
    hybrid_k_bound,
    hybrid_v_bound,
    packkv_bound,
    random_kv,
    random_profile,
)

# Whether a unit of each width has planes A, C, B, H1, H2.
PLANES_OF_WIDTH = {
    0: (0, 0, 0, 0, 0),
    1: (0, 1, 0, 0, 0),
    2: (1, 0, 0, 0, 0),
    3: (1, 1, 0, 0, 0),
    4: (1, 0, 1, 0, 0),
    6: (1, 0, 1, 1, 0),
    8: (1, 0, 1, 1, 1),
}

DIMS = [(2, 64), (8, 80), (1, 96), (4, 128), (3, 256), (5, 4), (1, 512)]
CASES = [(tokens, heads, dim) for heads, dim in DIMS for tokens in (1, 63, 64, 65, 130)]
IDS = [f"T{tokens}-H{heads}-D{dim}" for tokens, heads, dim in CASES]


def round_trip(
    keys: torch.Tensor, values: torch.Tensor, config: CodecConfig, profile: Profile | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encodes on both backends, demands equal bytes, decodes on both, demands equal values."""
    payloads = encode_payloads(keys, values, config, profile, backend="cpu")
    assert encode_payloads(keys, values, config, profile, backend="reference") == payloads
    decoded = []
    for data in payloads:
        payload = read_payload(data)
        found = decode_block(payload, config, profile, "cpu")
        wanted = decode_block(payload, config, profile, "reference")
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])
        decoded.append(found)
    return torch.cat([k for k, _ in decoded], 1), torch.cat([v for _, v in decoded], 1)


@pytest.mark.parametrize("levels", [2, 4, 8, 16])
@pytest.mark.parametrize(("tokens", "heads", "dim"), CASES, ids=IDS)
def test_hybrid_comes_back_within_half_the_coarsest_step(
    tokens: int, heads: int, dim: int, levels: int
) -> None:
    shape = CacheShape(1, heads, dim)
    keys, values = random_kv(shape, tokens, dtype=torch.float32)
    profile = random_profile(shape)
    config = HybridConfig(delta=0.6, v_levels=levels)
    k, v = round_trip(keys, values, config, profile)
    assert_close(k, keys, hybrid_k_bound(keys.double(), config, profile), "K")
    turn = rotation(dim).double()
    exact = values.double() @ turn
    assert_close(v[:, 4:].double() @ turn, exact[:, 4:], hybrid_v_bound(exact[:, 4:], levels), "V")
    assert_close(k[:, :4], keys[:, :4], halves_bound(keys[:, :4]), "K of sinks")
    assert_close(v[:, :4], values[:, :4], halves_bound(values[:, :4]), "V of sinks")


@pytest.mark.parametrize(("tokens", "heads", "dim"), CASES, ids=IDS)
def test_packkv_comes_back_within_half_a_step(tokens: int, heads: int, dim: int) -> None:
    keys, values = random_kv(CacheShape(2, heads, dim), tokens, dtype=torch.float16)
    config = PackKVConfig()
    k, v = round_trip(keys, values, config, None)
    assert_close(k, keys, packkv_bound(keys.double(), config.rel_k), "K")
    assert_close(v, values, packkv_bound(values.double(), config.rel_v), "V")
    assert torch.equal(k[:, :4], keys[:, :4].float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("tokens", "heads", "dim"), CASES, ids=IDS)
def test_raw_comes_back_bit_for_bit(tokens: int, heads: int, dim: int, dtype: torch.dtype) -> None:
    keys, values = random_kv(CacheShape(1, heads, dim), tokens, dtype=dtype)
    k, v = round_trip(keys, values, CodecConfig.preset("raw"), None)
    assert torch.equal(k, keys.float())
    assert torch.equal(v, values.float())


def hard_tensors() -> dict[str, torch.Tensor]:
    """K-like tensors [1, 70, 2, 64], float32, each with one kind of trouble."""
    base = torch.randn(1, 70, 2, 64, generator=torch.Generator().manual_seed(3))
    ramp = torch.linspace(-1, 1, 64)
    tiny = torch.full_like(base, 1e-45)
    tiny[..., ::2] = 0
    mixed = base.clone()
    mixed[:, 20] = 3.14
    mixed[:, 21] = 0
    mixed[:, 22] = -60_000
    return {
        "huge key bias": base + 400 * ramp,
        "beyond int8 minima": base + 40,
        "beyond int16 minima": base + 40_000,
        "constant channels": torch.where(ramp > 0, base, torch.tensor(2.5)),
        "constant tokens": base[..., :1].expand(base.shape),
        "zeros": torch.zeros_like(base),
        "negative zeros": -torch.zeros_like(base),
        "subnormals": base * 1e-39,
        "least subnormal": tiny,
        "tiny": base * 1e-6,
        "around the least scale": base * 2**-9,
        "huge": (base * 30_000).clamp(-65_504, 65_504),
        "largest": base.sign() * 65_504,
        "one far token": mixed,
        "outliers": torch.where(base > 2.5, base * 300, base),
        "halves": torch.round(base) + 0.5,
    }


@pytest.mark.parametrize("codec", ["hybrid", "hybrid:v_levels=16,sinks=0", "packkv", "raw"])
@pytest.mark.parametrize("trouble", hard_tensors())
def test_hard_values_come_back_within_bounds(trouble: str, codec: str) -> None:
    values = hard_tensors()[trouble]
    config = CodecConfig.parse(codec)
    profile = random_profile(CacheShape(1, 2, 64))
    k, v = round_trip(values, values, config, profile)
    assert k.isfinite().all()
    assert v.isfinite().all()
    if isinstance(config, HybridConfig):
        assert_close(k, values, hybrid_k_bound(values.double(), config, profile), "K")
        turn = rotation(64).double()
        exact = values.double() @ turn
        bound = hybrid_v_bound(exact, config.v_levels) + values.abs().amax() * 2**-10
        assert_close(v.double() @ turn, exact, bound, "V")
    elif isinstance(config, PackKVConfig):
        assert_close(k, values, packkv_bound(values.double(), config.rel_k), "K")
        assert_close(v, values, packkv_bound(values.double(), config.rel_v), "V")
    else:
        assert torch.equal(k, values)


@pytest.mark.parametrize(
    ("codec", "trouble", "raw_bits"),
    [
        ("hybrid", "beyond int16 minima", 0b11),
        ("hybrid:delta=0.01", "beyond int8 minima", 0b01),
        ("hybrid", "huge", 0b11),
        ("packkv", "least subnormal", 0b11),
        ("packkv", "constant tokens", 0b00),
        ("packkv:rel_k=0.001", "huge", 0b01),
    ],
)
def test_a_tile_that_fits_no_planes_becomes_raw(codec: str, trouble: str, raw_bits: int) -> None:
    values = hard_tensors()[trouble]
    config = CodecConfig.parse(codec)
    data = encode_payloads(values, values, config, random_profile(CacheShape(1, 2, 64)))[0]
    flags = describe_sections(read_payload(data))[0, FLAGS]
    assert flags >> RAW_SHIFT & 3 == raw_bits


@pytest.mark.parametrize("codec", ["hybrid:delta=0.3", "packkv:rel_k=0.02"])
@given(data=st.data())
@settings(max_examples=60)
def test_backends_agree_on_anything_finite(codec: str, data: st.DataObject) -> None:
    heads, dim = data.draw(st.sampled_from([(1, 4), (2, 8), (1, 20), (2, 68)]))
    tokens = data.draw(st.integers(1, 70))
    seed = data.draw(st.integers(0, 2**32))
    scale = 2.0 ** data.draw(st.integers(-40, 12))
    shape = CacheShape(1, heads, dim)
    keys, values = (x * scale for x in random_kv(shape, tokens, dtype=torch.float32, seed=seed))
    keys, values = keys.clamp(-65_504, 65_504), values.clamp(-65_504, 65_504)
    for _ in range(data.draw(st.integers(0, 4))):
        token = data.draw(st.integers(0, tokens - 1))
        keys[0, token, 0, 0] = data.draw(st.floats(-65_504, 65_504, width=16))
    round_trip(keys, values, CodecConfig.parse(codec), random_profile(shape, seed=seed))


@pytest.mark.parametrize("codec", ["hybrid", "packkv", "raw"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_with_their_place(codec: str, value: float) -> None:
    keys, values = (x[0] for x in random_kv(CacheShape(1, 2, 8), 70))
    values[66, 1, 5] = value
    with pytest.raises(InvalidInput) as caught:
        encode_layer(keys, values, layer=0, config=CodecConfig.preset(codec))
    assert f"V[layer 0, token 66, head 1, channel 5] is {value}" in str(caught.value)


def test_values_beyond_fp16_are_refused_by_all_but_raw() -> None:
    keys = torch.full((4, 1, 8), 1e30, dtype=torch.bfloat16)
    with pytest.raises(InvalidInput, match="65504"):
        encode_layer(keys, keys, layer=0, config=CodecConfig.preset("packkv"))
    k, _ = round_trip(keys[None], keys[None], CodecConfig.preset("raw"), None)
    assert torch.equal(k[0], keys.float())


@pytest.mark.parametrize("codec", ["hybrid", "packkv", "raw"])
def test_strides_do_not_matter(codec: str) -> None:
    shape = CacheShape(1, 3, 16)
    config, profile = CodecConfig.preset(codec), random_profile(shape)
    keys, values = (x[0] for x in random_kv(shape, 70))
    # [1, heads, tokens, head_dim] seen as [tokens, heads, head_dim], as transformers has it
    turned = keys.transpose(0, 1).contiguous().transpose(0, 1)
    spaced = torch.stack([values, values], -1).flatten(-2)[..., ::2]
    assert not turned.is_contiguous()
    wanted = encode_layer(keys, values, layer=0, config=config, profile=profile)
    assert encode_layer(turned, spaced, layer=0, config=config, profile=profile) == wanted


@pytest.mark.parametrize("codec", ["hybrid", "packkv"])
def test_any_number_of_threads_gives_the_same_bytes(codec: str) -> None:
    shape = CacheShape(3, 2, 16)
    config, profile = CodecConfig.parse(codec), random_profile(shape)
    keys, values = random_kv(shape, 5 * 64 + 1)
    results = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        payloads = encode_payloads(keys, values, config, profile)
        decoded = [decode_block(read_payload(data), config, profile) for data in payloads]
        results.append((payloads, torch.cat([k for k, _ in decoded], 1)))
    assert results[0][0] == results[1][0] == results[2][0]
    assert torch.equal(results[0][1], results[2][1])


def test_no_byte_comes_from_memory_that_was_not_written() -> None:
    shape = CacheShape(1, 2, 16)
    profile = random_profile(shape)
    keys, values = random_kv(shape, 69, dtype=torch.float32)
    keys[0, :64, 1, 3] *= 1e3
    k, v = keys[0].numpy(), values[0].numpy()
    found = []
    for poison in (0, 0xFFFFFFFF):
        arena = np.full((4, 4096), poison, np.uint32)
        lengths = np.zeros(4, np.int64)
        rel = np.float32(0.05)
        encode_packkv_sections(0, 2, k, v, 4, rel, rel, arena, lengths)
        found.append([row[:n].tobytes() for row, n in zip(arena, lengths, strict=True)])
    assert found[0] == found[1]
    # torch fills what it leaves uninitialised with NaN in this mode
    torch.use_deterministic_algorithms(True)
    try:
        round_trip(keys, values, HybridConfig(), profile)
        round_trip(keys, values, PackKVConfig(), None)
    finally:
        torch.use_deterministic_algorithms(False)


def test_blocks_encoded_one_by_one_are_the_blocks_encoded_together() -> None:
    shape = CacheShape(1, 2, 16)
    profile, config = random_profile(shape), HybridConfig()
    keys, values = (x[0] for x in random_kv(shape, 192))
    together = encode_layer(keys, values, layer=0, config=config, profile=profile)
    for block in range(3):
        part = slice(64 * block, 64 * block + 64)
        alone = encode_layer(
            keys[part],
            values[part],
            layer=0,
            config=config,
            profile=profile,
            first_token=64 * block,
        )
        assert alone == [together[block]]


def test_a_rank_encodes_its_heads_as_the_whole_model_would() -> None:
    shape = CacheShape(2, 4, 16)
    profile, config = random_profile(shape), HybridConfig()
    keys, values = (x[1] for x in random_kv(shape, 64))
    whole = encode_layer(keys, values, layer=1, config=config, profile=profile)
    part = encode_layer(
        keys[:, 2:], values[:, 2:], layer=1, config=config, profile=profile, first_head=2
    )
    assert part == [whole[0][2:]]


def test_heads_may_have_levels_of_their_own() -> None:
    shape = CacheShape(1, 4, 64)
    base = random_profile(shape)
    levels = torch.tensor([[2, 4, 8, 16]], dtype=torch.uint8).numpy()
    profile = Profile(base.q_rms, base.k_order, v_levels=levels)
    keys, values = random_kv(shape, 64, dtype=torch.float32)
    _, v = round_trip(keys, values, HybridConfig(), profile)
    error = (v - values)[0, 4:].square().mean((0, 2)) / values[0, 4:].square().mean((0, 2))
    # of unit Gaussians with these steps: 0.58, 0.125, 0.037 and 0.0115 of the variance
    wanted = torch.tensor([0.58, 0.125, 0.037, 0.0115])
    assert_close(error, wanted, wanted / 6)


@pytest.mark.parametrize("width", [0, 1, 2, 3, 4, 6, 8])
def test_a_channel_gets_the_width_and_the_step_that_its_range_asks_for(width: int) -> None:
    """A range in the middle of what a width takes, cut into as many steps as its codes have."""
    profile = Profile.identity(CacheShape(1, 1, 8))
    place = int(np.searchsorted(K_WIDTHS, width))
    most = float(RANGE_BOUNDS[place])
    span = (most + (float(RANGE_BOUNDS[place - 1]) if place else 0.0)) / 2
    keys = (torch.linspace(0, span, 64)[:, None] - 7.3).expand(64, 8)[None, :, None]
    config = HybridConfig(delta=1.0, sinks=0)
    k, _ = round_trip(keys, keys, config, profile)
    data = encode_payloads(keys, keys, config, profile)[0]
    row = describe_sections(read_payload(data))[0]
    modes = [plane_mode(row[FLAGS], K_SIDE, plane) for plane in range(PLANE_A, PLANE_H2 + 1)]
    assert modes == [mode * DENSE for mode in PLANES_OF_WIDTH[width]]
    found = k[0, :, 0, 0]
    assert len(set(found.tolist())) <= 2**width
    # the middle of a range is met to an eighth of a step at 0 bits; 1 bit lies inside its range
    step = 1.0 if width == 0 else span / (2**width - 1)
    bound = 0.125 + span / 2 if width == 0 else 0.56 * step
    assert (found - keys[0, :, 0, 0]).abs().max() <= bound


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"profile": None}, InvalidInput),
        ({"profile": random_profile(CacheShape(1, 2, 12))}, ProfileError),
        ({"profile": random_profile(CacheShape(1, 1, 8))}, ProfileError),
        ({"layer": 1}, InvalidInput),
        ({"first_token": 5}, InvalidInput),
        ({"first_head": 1}, ProfileError),
        ({"backend": "abacus"}, InvalidInput),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(change: dict[str, object], error: type[Exception]) -> None:
    shape = CacheShape(1, 2, 8)
    keys, values = (x[0] for x in random_kv(shape, 8))
    arguments = {"layer": 0, "config": HybridConfig(), "profile": random_profile(shape)} | change
    with pytest.raises(error):
        encode_layer(keys, values, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        (torch.zeros(2, 8), torch.zeros(2, 8)),
        (torch.zeros(2, 1, 8), torch.zeros(3, 1, 8)),
        (torch.zeros(0, 1, 8), torch.zeros(0, 1, 8)),
        (torch.zeros(2, 1, 6), torch.zeros(2, 1, 6)),
        (torch.zeros(2, 1, 8), torch.zeros(2, 1, 8, dtype=torch.float16)),
        (torch.zeros(2, 1, 8, dtype=torch.int8), torch.zeros(2, 1, 8, dtype=torch.int8)),
    ],
)
def test_tensors_of_a_wrong_kind_are_refused(keys: torch.Tensor, values: torch.Tensor) -> None:
    with pytest.raises(InvalidInput):
        encode_layer(keys, values, layer=0, config=CodecConfig.preset("raw"))


def test_a_payload_of_another_codec_or_profile_is_not_decoded() -> None:
    shape = CacheShape(1, 1, 8)
    keys, values = random_kv(shape, 8)
    hybrid = read_payload(encode_payloads(keys, values, HybridConfig(), random_profile(shape))[0])
    with pytest.raises(PayloadError, match="profile") as caught:
        decode_block(hybrid, HybridConfig(), random_profile(shape, seed=1))
    assert caught.value.reason == "identity"
    payload = read_payload(encode_payloads(keys, values, PackKVConfig())[0])
    with pytest.raises(PayloadError) as caught:
        decode_block(payload, PackKVConfig(rel_k=0.1))
    assert caught.value.reason == "identity"
