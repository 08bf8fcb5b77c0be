"""transformers' QuantizedCache as a baseline: the real class, and every byte that it keeps."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, QuantizedCache

from packkv.bench.codec.exact import ExactRun
from packkv.bench.codec.families import Grid, transformers_caches
from packkv.bench.codec.quantized_cache import (
    GroupWise,
    TransformersCache,
    missing,
    stored_bytes,
)
from packkv.bench.codec.setting import SINKS, head_bytes
from packkv_kernels.config import CacheShape
from packkv_kernels.testing import assert_close, random_kv

LAYERS, HEADS, DIM = 2, 2, 16
CONFIG = LlamaConfig(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=HEADS,
    head_dim=DIM,
    vocab_size=256,
    initializer_range=0.2,
)
needs_quanto = pytest.mark.skipif(
    find_spec("optimum") is None, reason="optimum-quanto is not installed"
)


def cache(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return random_kv(CacheShape(LAYERS, HEADS, DIM), tokens, dtype=torch.float32)


def test_the_fp8_backend_stores_a_byte_a_value_and_a_scale_a_layer() -> None:
    keys, values = cache(130)
    encoded = TransformersCache("fp8", CONFIG).encode(keys, values)
    sinks = 2 * 2 * SINKS * LAYERS * HEADS * DIM
    scales = 2 * LAYERS * 4
    assert encoded.nbytes == 2 * keys.numel() + scales + sinks + head_bytes(keys)
    k, v = encoded.decode()
    for found, exact in ((k, keys), (v, values)):
        assert torch.equal(found[:, :SINKS], exact[:, :SINKS].half().float())
        # e4m3: half of the last of three bits, and of the subnormals' spacing at that scale
        largest = exact[:, SINKS:].abs().amax((1, 2, 3), keepdim=True)
        bound = (exact.abs() / 16).maximum(largest / 448 * 2**-10) * 1.01
        assert_close(found[:, SINKS:], exact[:, SINKS:], bound[:, SINKS:])


def test_the_class_itself_gives_the_model_what_is_decoded() -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32).eval()
    ids = torch.randint(0, 256, (1, 161), generator=torch.Generator().manual_seed(1))
    exact = ExactRun(model, ids, 128)
    theirs = QuantizedCache("fp8", CONFIG)
    with torch.inference_mode():
        model(ids[:, :128], past_key_values=theirs)
        wanted = model(ids[:, 128:160], past_key_values=theirs).logits[0].log_softmax(-1)
    measured = exact.measure(TransformersCache("fp8", CONFIG))
    kl = (exact._exact.exp() * (exact._exact - wanted)).sum(-1).mean()
    # exact sinks and fp16 are all that is between them
    assert kl > 1e-5
    assert measured.score.kl.mean() == pytest.approx(float(kl), rel=0.5)


@needs_quanto
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("bits", [2, 4])
def test_quanto_is_charged_for_codes_scales_and_zero_points(bits: int, group: int) -> None:
    keys, values = cache(128)
    encoded = TransformersCache("quanto", CONFIG, GroupWise(bits, -1, 0, group)).encode(
        keys, values
    )
    codes = 2 * keys.numel() * bits // 8
    # a scale and a shift, fp16 both
    groups = 2 * keys.numel() // group
    sinks = 2 * 2 * SINKS * LAYERS * HEADS * DIM
    assert encoded.nbytes == codes + 4 * groups + sinks + head_bytes(keys)


def test_tensors_are_counted_wherever_they_are() -> None:
    held = (torch.zeros(3, 5), {"scale": torch.zeros(2, dtype=torch.float16), "axis": 1}, None)
    assert stored_bytes(held) == 64


@pytest.mark.parametrize("grid", Grid)
@pytest.mark.parametrize("backend", ["quanto", "hqq", "fp8"])
def test_every_family_fits_the_grid_without_repeating_itself(backend: str, grid: Grid) -> None:
    settings = transformers_caches(grid, CONFIG, backend).settings
    labels = {setting.label for setting in settings}
    assert len(labels) == len(settings) <= grid.size**2
    if backend != "fp8":
        assert {"2 bits", "4 bits"} <= {label.partition(",")[0] for label in labels}


def test_a_backend_that_is_not_there_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("transformers.cache_utils.is_optimum_quanto_available", lambda: False)
    reason = missing("quanto", CONFIG)
    assert reason is not None
    assert reason.startswith("no rows for transformers-quanto")
    assert "pip install optimum-quanto" in reason
    assert missing("fp8", CONFIG) is None
