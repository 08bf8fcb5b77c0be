"""Operators of torch: schemas, and graphs that hold them. Run by test_triton_interpreted.py."""

from __future__ import annotations

import sys

import torch

from packkv_kernels.attention.triton import DeviceLayer, PackedDecode, Residual
from packkv_kernels.attention.triton.launch import decode_attention
from packkv_kernels.compress.plan import plan_layers
from packkv_kernels.compress.triton.blocks import Encoder
from packkv_kernels.compress.triton.operators import pack, unpack
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig
from packkv_kernels.format import KVDtype, read_payload
from packkv_kernels.paged_cache import PagedCache
from packkv_kernels.testing import (
    check_growing_decode,
    encode_payloads,
    random_kv,
    random_profile,
)

SHAPE = CacheShape(1, 1, 64)
CODEC = CodecConfig.parse("hybrid")
PROFILE = random_profile(SHAPE)
CPU = torch.device("cpu")

# Sizes are part of each shape that is launched, so a graph is of one shape: no dynamic check.
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_static")


def cache_of(pages: int) -> PagedCache:
    cache = PagedCache(
        SHAPE, CODEC, PROFILE,
        capacity_bytes=1 << 18, kv_dtype=KVDtype.FLOAT32, device=CPU, backend="triton",
    )  # fmt: skip
    kv = random_kv(SHAPE, pages * BLOCK_TOKENS, dtype=torch.float32)
    cache.adopt_all([read_payload(data) for data in encode_payloads(*kv, CODEC, PROFILE)])
    return cache


def layer_of(cache: PagedCache) -> DeviceLayer:
    layer = cache.layer(0)
    assert isinstance(layer, DeviceLayer)
    return layer


class Step(torch.nn.Module):
    """One decode step of one layer, as an engine would write it."""

    def __init__(self, layer: DeviceLayer) -> None:
        super().__init__()
        self.decode = PackedDecode(layer, batch=1, rows=2, max_pages=2, splits=1, room=4)
        self.residual = Residual(
            torch.zeros(1, 1, 4, 64), torch.zeros(1, 1, 4, 64), torch.zeros(1, dtype=torch.int32)
        )

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        table: torch.Tensor,
        pages: torch.Tensor,
    ) -> torch.Tensor:
        rows, at = torch.arange(1), self.residual.tokens.long()
        self.residual.keys[rows, :, at] = key
        self.residual.values[rows, :, at] = value
        self.residual.tokens.add_(1)
        out, _ = self.decode(query, table, pages, 0.125, self.residual)
        return out * 2


def schemas() -> None:
    layer = layer_of(cache_of(1))
    step = Step(layer)
    decode, residual = step.decode, step.residual
    residual.tokens.fill_(1)
    table, pages = torch.zeros(1, 2, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    buffers = (decode.minima_scores, decode.means, decode.weights, decode.out, decode.lse)
    arguments = (
        *(torch.randn(1, 1, 2, 64), *residual, table, pages, layer.tensors, layer.modes),
        *(*(buffer.zero_() for buffer in buffers), 0.125, 1, 0, 1),
    )
    torch.library.opcheck(decode_attention, arguments, test_utils=CHECKS)
    small, plans = CacheShape(1, 1, 16), None
    plans = plan_layers(CODEC, random_profile(small), small)
    kv = random_kv(small, 5, dtype=torch.float32)
    tables = Encoder(plans, CPU).tables
    # past the last section lies whatever was there, which no two runs have alike
    torch.library.opcheck(pack, (*kv, str(CODEC), tables, 0), test_utils=CHECKS[:2])
    tables = [layer.order, layer.step, layer.steps, layer.middle]
    held = (layer.words, layer.bases, layer.descriptors, table[0, :1])
    torch.library.opcheck(unpack, (*held, tables, layer.span, torch.float16), test_utils=CHECKS)


def compiled() -> None:
    """Whole graphs of a decode step, over two steps and a page more: what they give uncompiled."""
    cache = cache_of(2)
    tables = cache.page_tables(1, 2)
    inputs = [tuple(torch.randn(size) for size in ((1, 1, 2, 64), (1, 1, 64), (1, 1, 64)))] * 2
    results: dict[str | None, list[torch.Tensor]] = {}
    for backend in (None, "eager", "aot_eager"):
        step = Step(layer_of(cache))
        run = step if backend is None else torch.compile(step, backend=backend, fullgraph=True)
        results[backend] = []
        for count, given in enumerate(inputs, start=1):
            tables.update([torch.arange(count, dtype=torch.int32).numpy()])
            results[backend].append(run(*given, tables.table, tables.pages).clone())
    wanted = results.pop(None)
    assert not torch.equal(wanted[0], wanted[1])
    for backend, found in results.items():
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True)), backend


def growing() -> None:
    check_growing_decode(CPU)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for check in sys.argv[1:]:
        globals()[check]()
