"""The codecs that PackKV is compared with: what they store, and how far off they are."""

from __future__ import annotations

import math

import pytest
import torch

from packkv.bench.codec.affine import KiviKeys, KiviValues, RotatedAffine
from packkv.bench.codec.baseline import Baseline, Quantiser, pack_codes, unpack_codes
from packkv.bench.codec.families import Grid, baselines, variants
from packkv.bench.codec.float8 import Float8
from packkv.bench.codec.gaussian import RotatedGaussian, lloyd_max
from packkv.bench.codec.kvcomp import KVCompKeys, KVCompValues
from packkv.bench.codec.published import PublishedPackKV
from packkv.bench.codec.setting import SINKS, Family, Setting, head_bytes
from packkv_kernels.compress import rotation
from packkv_kernels.config import CacheShape
from packkv_kernels.packs import Repacking
from packkv_kernels.testing import assert_close, random_kv

SHAPES = [(1, 3, 64, 200), (2, 1, 80, 128), (1, 2, 16, 65)]
QUICK = baselines(Grid.QUICK)


def cache(layers: int, heads: int, dim: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return random_kv(CacheShape(layers, heads, dim), tokens, dtype=torch.float32)


def spread(values: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    return values.amax(dims, keepdim=True) - values.amin(dims, keepdim=True)


def decoded(quantiser: Quantiser, values: torch.Tensor) -> torch.Tensor:
    return quantiser.encode(values).decode()


@pytest.mark.parametrize("bits", [1, 3, 4, 6])
def test_codes_come_back(bits: int) -> None:
    codes = torch.randint(0, 1 << bits, (3, 7, 5), generator=torch.Generator().manual_seed(bits))
    data = pack_codes(codes, bits)
    assert len(data) == math.ceil(105 * bits / 8)
    assert torch.equal(unpack_codes(data, bits, codes.shape), codes.int())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", QUICK, ids=lambda family: family.codec)
def test_every_setting_keeps_shape_and_sinks(
    family: Family, shape: tuple[int, int, int, int]
) -> None:
    keys, values = cache(*shape)
    for setting in family.settings:
        encoded = setting.encode(keys, values)
        k, v = encoded.decode()
        assert k.shape == v.shape == keys.shape
        assert torch.equal(k[:, :SINKS], keys[:, :SINKS].half().float())
        assert torch.equal(v[:, :SINKS], values[:, :SINKS].half().float())
        least = head_bytes(keys) + 4 * keys[:, :SINKS].numel()
        assert least < encoded.nbytes < 4 * 4 * keys.numel()


def test_variants_are_the_papers_other_choices() -> None:
    keys, values = cache(1, 2, 16, 140)
    # of the same scales: what repacking and packs are worth is the difference in bytes
    first = {family.codec: family.settings[0] for family in [*QUICK, *variants(Grid.QUICK)]}
    size = {codec: setting.encode(keys, values).nbytes for codec, setting in first.items()}
    assert size["packkv"] < size["packkv-median"]
    assert size["packkv"] < size["packkv-none"]
    assert size["packkv"] != size["packkv-p8"] != size["packkv-p4"]
    assert size["kvcomp-block"] < size["kvcomp"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [2, 4])
def test_kivi_is_within_half_a_step_of_its_group(
    bits: int, shape: tuple[int, int, int, int]
) -> None:
    keys, values = (part[:, SINKS:] for part in cache(*shape))
    k = decoded(KiviKeys(bits, 32), keys)
    for start in range(-SINKS, keys.shape[1], 32):
        group = slice(max(start, 0), start + 32)
        step = spread(keys[:, group], (1,)) / (2**bits - 1)
        # least value and step are fp16, each within 2⁻¹¹
        slack = keys[:, group].abs().amax(1, keepdim=True) * 2**-9
        assert_close(k[:, group], keys[:, group], step / 2 + slack, "K")
    width = 32 if values.shape[-1] % 32 == 0 else values.shape[-1]
    parts = values.reshape(*values.shape[:-1], -1, width)
    bound = spread(parts, (-1,)) / (2**bits - 1) / 2 + parts.abs().amax(-1, keepdim=True) * 2**-9
    found = decoded(KiviValues(bits, 32), values)
    assert_close(found, values, bound.expand(parts.shape).flatten(-2), "V")


def test_kivi_stores_codes_and_two_halves_per_group() -> None:
    keys, values = cache(1, 3, 64, 128)
    encoded = Baseline(KiviKeys(2, 32), KiviValues(2, 32)).encode(keys, values)
    codes = 2 * (128 - SINKS) * 3 * 64 * 2 // 8
    groups = 4 * 3 * 64 + (128 - SINKS) * 3 * 2
    sinks = 2 * 2 * SINKS * 3 * 64
    assert encoded.nbytes == codes + 4 * groups + sinks + head_bytes(keys)


@pytest.mark.parametrize("dim", [64, 80])
def test_rotated_codes_are_within_half_a_step(dim: int) -> None:
    _, values = cache(1, 2, dim, 70)
    turn = rotation(dim)
    rotated = values @ turn
    found = decoded(RotatedAffine(4), values) @ turn
    bound = spread(rotated, (-1,)) / 15 / 2 + rotated.abs().amax(-1, keepdim=True) * 2**-9
    assert_close(found, rotated, bound, "rotated V")


@pytest.mark.parametrize(
    ("levels", "error"), [(2, 0.3634), (4, 0.1175), (8, 0.03454), (16, 0.009497)]
)
def test_lloyd_max_has_the_errors_of_the_paper(levels: int, error: float) -> None:
    # Max, Quantizing for Minimum Distortion, 1960, table I
    centres, boundaries = lloyd_max(levels)
    draw = torch.special.ndtri((torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000)
    found = (draw - centres.double()[torch.bucketize(draw, boundaries.double())]).square().mean()
    assert found == pytest.approx(error, rel=2e-3)


def test_gaussian_codes_have_the_error_of_their_levels() -> None:
    values = torch.randn(1, 400, 2, 64, generator=torch.Generator().manual_seed(0))
    error = (decoded(RotatedGaussian(3), values) - values).square().mean()
    # 0.03454 for the levels; the scale byte, within 1/32 octave, adds little
    assert 0.033 < error < 0.037


def test_float8_is_within_its_last_bit() -> None:
    values = torch.tensor([0.0, 1.06, -447.0, 1000.0]).reshape(1, 1, 1, 4)
    found = decoded(Float8(), values)
    assert_close(found[..., :3], values[..., :3], values[..., :3].abs() / 16, "value")
    assert found[..., 3] == 448


@pytest.mark.parametrize("rel", [0.1, 0.3])
def test_kvcomp_is_within_half_a_step_of_its_unit(rel: float) -> None:
    _, values = cache(2, 3, 64, 200)
    bound = rel * spread(values, (3,)) * 0.51 + values.abs() * 1e-3
    assert_close(decoded(KVCompValues(rel), values), values, bound, "V")
    keys = values[:, :64]
    bound = rel * spread(keys, (1,)) * 0.51 + keys.abs().amax(1, keepdim=True) * 1e-3
    assert_close(decoded(KVCompKeys(rel), keys), keys, bound, "K")


@pytest.mark.parametrize("repacking", Repacking)
def test_published_packkv_is_within_half_a_step(repacking: Repacking) -> None:
    keys, values = cache(2, 3, 64, 130)
    setting: Setting = PublishedPackKV(0.05, 0.2, repacking)
    for exact, found, rel in zip(
        (keys, values), setting.encode(keys, values).decode(), (0.05, 0.2), strict=True
    ):
        for start in (SINKS, 64, 128):
            block = slice(start, 64 * (start // 64 + 1))
            # tokens may come back in another order: compare by nearest token
            far = (exact[:, block, None] - found[:, None, block]).abs()
            bound = rel * spread(exact[:, block], (2, 3)) * 0.502 + exact[:, block].abs() * 1e-3
            fits = (far <= bound[:, :, None]).all(-1).all(-1)
            assert fits.any(2).all()
            assert fits.any(1).all()


@pytest.mark.parametrize("factor", [1e-9, 60_000.0])
def test_published_packkv_keeps_scales_that_fp16_cannot_hold(factor: float) -> None:
    keys, values = (factor * part.clamp(-1, 1) for part in cache(1, 2, 16, 64))
    decoded_keys, _ = PublishedPackKV(1.0, 1.0, Repacking.NONE).encode(keys, values).decode()
    bound = spread(keys[:, SINKS:], (2, 3)) * 0.501
    assert_close(decoded_keys[:, SINKS:], keys[:, SINKS:], bound, "K")


def test_the_published_count_leaves_out_what_is_stored() -> None:
    keys, values = cache(2, 2, 16, 140)
    setting = PublishedPackKV(0.05, 0.2)
    stored = setting.encode(keys, values).nbytes
    assert setting.published_bits(keys, values) < 8 * stored / (2 * keys.numel())


def test_repacking_changes_only_the_order() -> None:
    keys, values = cache(1, 2, 16, 128)
    plain, greedy = (
        PublishedPackKV(0.05, 0.2, repacking).encode(keys, values).decode()
        for repacking in (Repacking.NONE, Repacking.GREEDY)
    )
    for before, after in zip(plain, greedy, strict=True):
        first, second = before[0, 64:].flatten(1), after[0, 64:].flatten(1)
        assert {tuple(row) for row in first.tolist()} == {tuple(row) for row in second.tolist()}
