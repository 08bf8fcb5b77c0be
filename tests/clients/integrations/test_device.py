"""The transformers connector with its pages on a device: a GPU, or Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel

from packkv.integrations.hf import PackKV, PackKVConfig
from packkv_kernels.backend import available_backends

pytest.importorskip("triton")

needs_triton = pytest.mark.skipif(
    "triton" not in available_backends(), reason="neither a GPU nor TRITON_INTERPRET=1"
)


def small_model(device: torch.device) -> PreTrainedModel:
    config = MistralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=50,
        initializer_range=0.3,
        sliding_window=60,
    )
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return model.to(device)


def follow(model: PreTrainedModel, backend: str | None) -> tuple[list[torch.Tensor], bytes]:
    """The logits of all that a cache goes through, and the payload of a page packed meanwhile."""
    ids = torch.randint(1, 50, (2, 90), generator=torch.manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :30] = 0
    ids, mask = ids.to(model.device), mask.to(model.device)
    settings = PackKVConfig(
        codec="hybrid:delta=0.3,v_levels=16", weights_digest="w", calibration_tokens=70,
        backend=backend, cache_bytes=1 << 20,
    )  # fmt: skip
    logits = []
    with PackKV(model, None, settings) as packkv, torch.inference_mode():
        cache = packkv.new_cache(ids, mask)
        # a prefill that makes a page of one row, then a decode step over both
        for start, stop in ((0, 80), (80, 81)):
            step = model(ids[:, start:stop], mask[:, :stop], past_key_values=cache).logits
            logits.append(step[:, -1].cpu())
        assert [row.packed_tokens for row in cache.rows] == [64, 0]
        packkv.publish(cache)
        again = packkv.new_cache(ids[:1])
        assert again.matched_tokens == [64]
        assert again.rows[0].pages == cache.rows[0].pages[:1]
        # a suffix long enough to unpack the page for
        logits.append(model(ids[:1, 64:], past_key_values=again).logits[:, -1].cpu())
        # a page that is cut goes back to exact tokens, where the model computes
        again.crop(-40)
        logits.append(model(ids[:1, 50:51], past_key_values=again).logits[:, -1].cpu())
        assert packkv._paged is not None
        return logits, bytes(packkv._paged.payload(cache.rows[0].pages[0]))


@needs_triton
@pytest.mark.gpu
def test_a_model_computes_the_same_with_its_pages_on_a_device() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found, page = follow(small_model(device), "triton" if device.type == "cpu" else None)
    wanted, same_page = follow(small_model(torch.device("cpu")), "cpu")
    if device.type == "cpu":
        assert page == same_page
    for step, (own, right) in enumerate(zip(found, wanted, strict=True)):
        assert (own - right).abs().max() < 2e-2 * right.abs().max(), f"step {step}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: it runs by itself")
def test_so_it_does_in_the_interpreter() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-W", "ignore::DeprecationWarning", __file__, "-k", "same_with_its_pages"),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout, done.stdout
