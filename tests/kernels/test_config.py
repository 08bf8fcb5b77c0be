"""CodecConfig: spelled, validated, and told apart by its digest."""

from __future__ import annotations

import pytest

from packkv_kernels.config import (
    CacheShape,
    CodecConfig,
    CodecId,
    HybridConfig,
    PackKVConfig,
    RawConfig,
)
from packkv_kernels.errors import InvalidInput


def test_a_spelling_names_codec_and_parameters() -> None:
    assert CodecConfig.parse("hybrid") == HybridConfig()
    assert CodecConfig.parse(" hybrid: delta=2, v_levels = 4") == HybridConfig(2.0, 4)
    assert CodecConfig.parse("packkv:rel_k=0.1") == PackKVConfig(rel_k=0.1)
    assert CodecConfig.parse("raw") == RawConfig()


@pytest.mark.parametrize(
    "config", [HybridConfig(0.7, 16, 0), PackKVConfig(0.03, 0.1), RawConfig()], ids=str
)
def test_a_config_reads_back_from_its_own_spelling(config: CodecConfig) -> None:
    assert CodecConfig.parse(str(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zip", "no codec is called 'zip'"),
        ("hybrid:speed=1", "no parameter 'speed'"),
        ("hybrid:delta=fast", "delta 'fast' is not a number"),
        ("hybrid:v_levels=8.5", "v_levels '8.5' is not a whole number"),
        ("hybrid:v_levels=5", "v_levels 5 is not one of [2, 4, 8, 16]"),
        ("hybrid:delta=0", "delta 0.0 is outside"),
        ("hybrid:delta=nan", "delta nan is outside"),
        ("hybrid:sinks=65", "sinks 65 is outside 0 … 64"),
        ("packkv:rel_v=2", "rel_v 2.0 is outside"),
        ("raw:sinks=4", "no parameter 'sinks'"),
    ],
)
def test_a_bad_spelling_is_refused_with_value_and_limit(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        CodecConfig.parse(text)
    assert message in str(caught.value)


def test_digests_differ_exactly_when_parameters_do() -> None:
    configs = [
        HybridConfig(),
        HybridConfig(delta=1.5),
        HybridConfig(sinks=0),
        PackKVConfig(),
        PackKVConfig(rel_k=0.06),
        RawConfig(),
    ]
    assert len({config.digest for config in configs}) == len(configs)
    assert HybridConfig(delta=1).digest == HybridConfig(delta=1.0).digest


def test_the_digest_of_a_codec_never_changes() -> None:
    # stored blocks carry it: another digest for the same codec would orphan them all
    assert HybridConfig().digest.hex().startswith("cda2e178b2db87e1")
    assert RawConfig().digest.hex().startswith("ad517da5db5ff914")


def test_only_the_first_block_has_sinks() -> None:
    config = HybridConfig()
    assert [config.block_sinks(0, 64), config.block_sinks(0, 2), config.block_sinks(64, 64)] == [
        4,
        2,
        0,
    ]
    assert RawConfig().block_sinks(0, 64) == 0
    assert RawConfig().codec_id is CodecId.RAW


@pytest.mark.parametrize("dims", [(0, 1, 64), (1, 0, 64), (1, 1, 66), (1, 1, 516), (1, 1, 0)])
def test_an_impossible_shape_is_refused(dims: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidInput):
        CacheShape(*dims)
