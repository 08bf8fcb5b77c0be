"""A whole model that decodes: transformers' own cache beside packed pages, weights at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from packkv.bench.kernels.gpu.packed import CODEC
from packkv.bench.kernels.gpu.plan import Plan
from packkv.bench.kernels.gpu.row import Bench, Row
from packkv_kernels.config import CacheShape
from packkv_kernels.format import KVDtype
from packkv_kernels.paged_cache import PagedCache
from packkv_kernels.profile import Profile

__all__ = ["measure_model"]

_VOCABULARY = 1024


@torch.inference_mode()
def measure_model(bench: Bench, plan: Plan) -> Iterator[Row]:
    """µs of a decode step, as a program takes them; no profile is calibrated, and none is needed
    to time it. `rel_error` compares the logits of the first step with those of the exact cache."""
    from transformers import DynamicCache

    from packkv.integrations.hf import PackedKVCache
    from packkv.integrations.hf.attention import use_packed_attention

    model, ids = _model(bench, plan), _ids(bench, plan)
    past: Any = DynamicCache()
    model(ids, past_key_values=past)
    right, us = _step_us(bench, plan, model, past, ids)
    where: dict[str, Any] = {"context": plan.model_tokens, "batch": 1, "group": 4}
    detail = f"{plan.model_layers} layers"
    yield Row("model_step_exact_cache", us=us, detail=detail, **where)

    use_packed_attention(model)
    shape = CacheShape(plan.model_layers, plan.heads, plan.head_dim)
    # room for the prefix in fp16, so that packed pages always fit
    room = shape.layers * shape.heads * shape.head_dim * 4 * (plan.model_tokens + 128)
    backend = None if bench.device.type == "cuda" else "triton"
    pages = PagedCache(
        shape, CODEC, Profile.identity(shape), capacity_bytes=room,
        kv_dtype=KVDtype.FLOAT16, device=bench.device, backend=backend,
    )  # fmt: skip
    packed = PackedKVCache(shape, lambda: pages)
    model(ids, past_key_values=packed)
    found, packed_us = _step_us(bench, plan, model, packed, ids)
    error = float((found - right).norm() / right.norm())
    speedup = None if us is None or packed_us is None else us / packed_us
    yield Row(
        "model_step_packed_cache", us=packed_us, speedup_vs_sdpa_fp16=speedup, rel_error=error,
        detail=detail, **where,
    )  # fmt: skip


def _model(bench: Bench, plan: Plan) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = plan.heads * 4
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY, hidden_size=heads * plan.head_dim // (4 if plan.rehearsed else 1),
        intermediate_size=2 * heads * plan.head_dim, num_hidden_layers=plan.model_layers,
        num_attention_heads=heads, num_key_value_heads=plan.heads, head_dim=plan.head_dim,
        max_position_embeddings=plan.model_tokens + 4 * plan.model_steps + 64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    return model.half().to(bench.device) if bench.device.type == "cuda" else model.half()


def _ids(bench: Bench, plan: Plan) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(_VOCABULARY, (1, plan.model_tokens), generator=generator).to(bench.device)


def _step_us(
    bench: Bench, plan: Plan, model: Any, past: Any, ids: torch.Tensor
) -> tuple[torch.Tensor, float | None]:
    """(logits of the first step, µs of one step)."""
    one = ids[:, :1]
    logits = model(one, past_key_values=past).logits.float()

    def steps() -> None:
        for _ in range(plan.model_steps):
            model(one, past_key_values=past)

    call: Callable[[], object] = steps
    us = bench.clock.wall_us(call)
    return logits, None if us is None else us / plan.model_steps
