"""Attention over plain K and V: what packed attention is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["Baseline", "baselines"]

Baseline = tuple[str, Callable[[], torch.Tensor], float]


def baselines(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Iterator[Baseline]:
    """(name, call, bytes of K and V that it must move) of each that runs here; fp16 SDPA first.

    Args:
        query: fp16 [batch, heads, group, head_dim].
        keys, values: fp16 [batch, heads, context, head_dim], contiguous.
    """
    batch, heads, group, head_dim = query.shape
    flat = query.reshape(batch, heads * group, 1, head_dim)
    moved = float(2 * keys.nbytes)
    yield "sdpa_fp16_attention", lambda: _sdpa(flat, keys, values, group), moved
    yield "cublas_matvec_attention", lambda: _two_products(query, keys, values), moved
    if hasattr(torch, "float8_e4m3fn"):
        small = [part.to(torch.float8_e4m3fn) for part in (keys, values)]
        yield (
            "fp8_cast_sdpa_attention",
            lambda: _sdpa(flat, small[0].half(), small[1].half(), group),
            moved / 2,
        )
    if query.is_cuda and find_spec("flashinfer") is not None:
        yield "flashinfer_fp16_attention", _flashinfer(query, keys, values), moved


def _sdpa(flat: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: int) -> torch.Tensor:
    return F.scaled_dot_product_attention(flat, keys, values, enable_gqa=group > 1)


def _two_products(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """As KVComp's paper compares: a product with K, a softmax, a product with V, by cuBLAS."""
    scores = torch.matmul(query, keys.transpose(2, 3)) * query.shape[3] ** -0.5
    return torch.matmul(scores.softmax(-1), values)


def _flashinfer(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """FlashInfer's paged decode over pages of 64 tokens that lie in order."""
    import flashinfer

    batch, heads, context, head_dim = keys.shape
    pages, device = context // 64, keys.device
    paged = [
        part.view(batch, heads, pages, 64, head_dim)
        .permute(0, 2, 1, 3, 4)
        .reshape(batch * pages, heads, 64, head_dim)
        .contiguous()
        for part in (keys, values)
    ]
    wrapper: Any = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(128 << 20, dtype=torch.uint8, device=device), "HND"
    )
    ends = torch.arange(batch + 1, dtype=torch.int32, device=device) * pages
    places = torch.arange(batch * pages, dtype=torch.int32, device=device)
    last = torch.full((batch,), 64, dtype=torch.int32, device=device)
    wrapper.plan(
        ends, places, last, heads * query.shape[2], heads, head_dim, 64,
        q_data_type=query.dtype, kv_data_type=keys.dtype,
    )  # fmt: skip
    flat = query.reshape(batch, -1, head_dim)
    found: Callable[[], torch.Tensor] = lambda: wrapper.run(flat, tuple(paged))  # noqa: E731
    return found
