"""Cases of cold payloads that are decoded on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from packkv.bench.kernels.gpu.plan import Plan
from packkv.bench.kernels.gpu.row import Bench, Row
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig
from packkv_kernels.entropy import ColdHead, to_cold
from packkv_kernels.entropy.triton.cold import ColdDecoder
from packkv_kernels.format import Form, Payload, read_payload
from packkv_kernels.testing import encode_payloads, random_kv, random_profile

__all__ = ["cold_payload", "measure_cold"]

# Few symbols of many codes on V, many of one code, and many on both sides.
_SPELLED = ("hybrid:v_levels=4", "hybrid:v_levels=16", "packkv")


def cold_payload(spelled: str, shape: CacheShape) -> Payload:
    """One block of random tokens in cold form.

    Raises:
        AssertionError: the codec gains nothing on it.
    """
    config = CodecConfig.parse(spelled)
    profile = random_profile(shape) if config.needs_profile else None
    keys, values = random_kv(shape, BLOCK_TOKENS)
    payload = read_payload(to_cold(read_payload(encode_payloads(keys, values, config, profile)[0])))
    if payload.header.form is not Form.COLD:
        raise AssertionError(f"{spelled}, {shape}: stays resident")
    return payload


def measure_cold(bench: Bench, plan: Plan) -> Iterator[Row]:
    """Rows of blocks of one sequence, each with tables of its own, decoded in one call."""
    blocks = plan.cold_tokens // BLOCK_TOKENS
    shape = CacheShape(plan.cold_layers, plan.heads, 4 if plan.rehearsed else plan.head_dim)
    for spelled in _SPELLED[2:] if plan.rehearsed else _SPELLED:
        payload = cold_payload(spelled, shape)
        head = ColdHead.of(payload)
        one = head.plan(payload.data)
        plans = [replace(one, lengths=one.lengths.copy()) for _ in range(blocks)]
        starts = [block * one.resident_words for block in range(blocks)]
        resident = blocks * one.resident_words
        out = torch.zeros(resident, dtype=torch.uint32, device=bench.device)
        decoder = ColdDecoder(shape.head_dim, bench.device)
        sent = decoder.send(plans, starts)
        cold = blocks * len(payload.data)
        yield bench.row(
            "cold_decode",
            partial(decoder.decode, sent, out),
            cold + 4 * resident,
            detail=f"{spelled}, {shape.layers} layers",
            context=plan.cold_tokens,
            batch=1,
            ratio=4 * shape.layers * shape.heads * shape.head_dim * plan.cold_tokens / cold,
        )
