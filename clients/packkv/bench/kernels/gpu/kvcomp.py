"""Cases of KVComp on the device, as its paper has them: encode, decode, and both dot products."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from packkv.bench.kernels.gpu.baselines import baselines
from packkv.bench.kernels.gpu.plan import Plan
from packkv.bench.kernels.gpu.row import Bench, Row
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.entropy.kvcomp import KVCompConfig, Units
from packkv_kernels.entropy.triton.attention import KVCompDecode
from packkv_kernels.entropy.triton.side import DeviceBlocks, DeviceSide, encode_codes

__all__ = ["measure_kvcomp"]

_PROGRAMS = 4096


def measure_kvcomp(bench: Bench, plan: Plan) -> Iterator[Row]:
    """Rows of one sequence: fused attention by table and by tree, beside separate kernels."""
    tokens, config = plan.kvcomp_tokens, KVCompConfig()
    # a bit is a step of the interpreter: a rehearsal takes fewer of them
    head_dim = plan.head_dim // 4 if plan.rehearsed else plan.head_dim
    dims = (tokens, plan.heads, head_dim)
    sides = [
        DeviceSide(config.rel_k, Units.CHANNEL, bench.device),
        DeviceSide(config.rel_v, Units.TOKEN, bench.device),
    ]
    parts = [bench.randn(*dims), bench.randn(*dims) * 0.3]
    for side, part in zip(sides, parts, strict=True):
        side.append(part)
    stored = [side.words.nbytes + 4 * side.offsets.numel() for side in sides]
    raw = 2 * parts[0].nbytes
    where = {"context": tokens, "batch": 1, "ratio": raw / sum(stored)}
    yield from _encode_rows(bench, sides, parts, stored, where)
    for side, name, size in zip(sides, "kv", stored, strict=True):
        for tree in (False, True):
            yield bench.row(
                "kvcomp_decode",
                partial(side.decode, dtype=torch.float16, tree=tree),
                size + raw / 2, detail=f"{name}, by {_reader(tree)}", **where,
            )  # fmt: skip
    blocks = tokens // BLOCK_TOKENS
    table = torch.arange(blocks, dtype=torch.int32, device=bench.device)[None]
    pages = torch.full((1,), blocks, dtype=torch.int32, device=bench.device)
    dense = [part.transpose(0, 1)[None].contiguous() for part in parts]
    for group in plan.groups:
        query = bench.randn(1, plan.heads, group, head_dim)
        base = None
        for name, call, moved in list(baselines(query, *dense))[:2]:
            row = bench.row(name, call, moved, base=base, group=group, context=tokens, batch=1)
            base = row.us if base is None else base
            yield row
        for tree in (False, True):
            decode = KVCompDecode(
                *sides, batch=1, rows=group, splits=max(1, min(blocks, _PROGRAMS // plan.heads)),
                tree=tree,
            )  # fmt: skip
            yield bench.row(
                "kvcomp_fused_attention",
                partial(decode, query, table, pages, 0.1),
                sum(stored), base=base, group=group, detail=f"by {_reader(tree)}", **where,
            )  # fmt: skip


def _encode_rows(
    bench: Bench,
    sides: list[DeviceSide],
    parts: list[torch.Tensor],
    stored: list[int],
    where: dict[str, float],
) -> Iterator[Row]:
    for side, part, name, size in zip(sides, parts, "kv", stored, strict=True):
        encode = partial(_encode, side, part)
        yield bench.row("kvcomp_encode", encode, part.nbytes + size, detail=name, **where)


def _encode(side: DeviceSide, part: torch.Tensor) -> DeviceBlocks:
    assert side.tables is not None
    return encode_codes(*side.quantise(part), side.tables)


def _reader(tree: bool) -> str:
    return "tree" if tree else "table"
