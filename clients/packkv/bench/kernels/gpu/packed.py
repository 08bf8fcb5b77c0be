"""Cases of packed pages: compress, unpack, suffix prefill and decode, beside their baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from packkv.bench.kernels.gpu.baselines import baselines
from packkv.bench.kernels.gpu.plan import Plan
from packkv.bench.kernels.gpu.row import Bench, Row
from packkv_kernels.attention import PackedLayer
from packkv_kernels.attention.triton import DeviceLayer, PackedDecode, resident_layer
from packkv_kernels.compress import plan_layers
from packkv_kernels.compress.triton.blocks import Encoder
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig, HybridConfig
from packkv_kernels.format.tile import DESCRIPTOR_WORDS
from packkv_kernels.profile import Profile

__all__ = ["CODEC", "Pages", "decode_call", "measure_case", "packed_layer"]

# K of unit variance then needs about 4 bits.
CODEC = HybridConfig(delta=0.45)

_PROGRAMS = 1024


class Pages:
    """K and V of a case, as they are and packed.

    Attributes:
        tokens: how many there are, over all sequences.
        keys, values: fp16 [1, tokens, heads, head_dim].
        layer: the pages on the device.
        stored: bytes of the sections.
        moved: bytes that decode attention must read.
    """

    def __init__(
        self,
        bench: Bench,
        plan: Plan,
        tokens: int,
        config: HybridConfig = CODEC,
        *,
        spread: float = 0.0,
    ) -> None:
        """
        Args:
            bench, plan: of the run.
            tokens: over all sequences.
            config: the codec.
            spread: standard deviation of log K over its channels: units then differ in width.
        """
        self.tokens, self.shape = tokens, CacheShape(1, plan.heads, plan.head_dim)
        self.profile = Profile.identity(self.shape)
        dims = (1, tokens, plan.heads, plan.head_dim)
        self.keys, self.values = bench.randn(*dims), bench.randn(*dims)
        if spread:
            self.keys *= (spread * bench.randn(plan.head_dim).sort().values).exp()
        packed = packed_layer(config, self.profile, self.keys, self.values)
        count = tokens // BLOCK_TOKENS
        self.layer = resident_layer(packed, np.arange(count, dtype=np.int32), bench.device)
        self.stored = packed.words.nbytes
        self.moved = self.stored + self.layer.directory.nbytes
        self.ratio = 2 * self.keys.nbytes / self.stored

    def dense(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V as plain attention reads them: [batch, heads, context, head_dim]."""
        found = (
            part.view(batch, -1, *part.shape[2:]).transpose(1, 2).contiguous()
            for part in (self.keys, self.values)
        )
        return next(found), next(found)


def packed_layer(
    config: CodecConfig, profile: Profile | None, keys: torch.Tensor, values: torch.Tensor
) -> PackedLayer:
    """Packs K and V [1, tokens, heads, head_dim] on their device, described in host memory."""
    plan = plan_layers(config, profile, CacheShape(1, *keys.shape[2:]))[0]
    sections = Encoder([plan], keys.device)(keys.contiguous(), values.contiguous(), 0)
    starts = sections.starts.cpu().numpy()
    descriptors = sections.descriptors.cpu().numpy().reshape(-1, plan.heads, DESCRIPTOR_WORDS)
    words = sections.words[: int(starts[-1])].cpu().numpy()
    return PackedLayer(words, starts[:-1].reshape(-1, plan.heads), descriptors, plan)


def decode_call(
    layer: DeviceLayer,
    query: torch.Tensor,
    pages: int,
    batch: int,
    table: torch.Tensor | None = None,
) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """Attention of `batch` sequences of `pages` pages each; in order, unless a table says else."""
    device = query.device
    if table is None:
        table = torch.arange(batch * pages, dtype=torch.int32, device=device).view(batch, pages)
    counts = torch.full((batch,), pages, dtype=torch.int32, device=device)
    splits = max(1, min(pages // 4, _PROGRAMS // (batch * layer.heads)))
    decode = PackedDecode(layer, batch=batch, rows=query.shape[2], max_pages=pages, splits=splits)
    return lambda: decode(query, table, counts, layer.head_dim**-0.5)


def measure_case(bench: Bench, plan: Plan, context: int, batch: int) -> Iterator[Row]:
    """All rows of one context and batch."""
    pages = Pages(bench, plan, context * batch)
    where = {"context": context, "batch": batch, "ratio": pages.ratio}
    raw_bytes = 2 * pages.keys.nbytes
    encode = Encoder(plan_layers(CODEC, pages.profile, pages.shape), bench.device)
    yield bench.row(
        "compress", lambda: encode(pages.keys, pages.values, 0), raw_bytes + pages.stored, **where
    )
    table = torch.arange(context // BLOCK_TOKENS, dtype=torch.int32, device=bench.device)
    yield bench.row(
        "unpack",
        lambda: pages.layer.unpack(table, dtype=torch.float16),
        (raw_bytes + pages.stored) / batch,
        **where,
    )
    keys, values = pages.dense(batch)
    for group in plan.groups:
        query = bench.randn(batch, plan.heads, group, plan.head_dim)
        base, right = None, query
        for name, call, moved in baselines(query, keys, values):
            row = bench.row(name, call, moved, base=base, group=group, **{**where, "ratio": 1.0})
            if base is None:
                base, right = row.us, call().view(query.shape).float()
            yield row
        decode = decode_call(pages.layer, query, context // BLOCK_TOKENS, batch)
        error = float((decode()[0] - right).norm() / right.norm())
        yield bench.row(
            "packed_decode_attention", decode, pages.moved,
            base=base, group=group, rel_error=error, **where,
        )  # fmt: skip
        yield from _suffix_rows(bench, plan, pages, table, group, where)


def _suffix_rows(
    bench: Bench, plan: Plan, pages: Pages, table: torch.Tensor, group: int, where: dict[str, float]
) -> Iterator[Row]:
    """A suffix of one sequence over its prefix: unpacked once, and as plain attention does it."""
    context, batch = len(table) * BLOCK_TOKENS, int(where["batch"])
    suffix = bench.randn(1, plan.heads * group, plan.suffix, plan.head_dim)
    keys, values = (part[:1] for part in pages.dense(batch))

    def plain() -> torch.Tensor:
        return F.scaled_dot_product_attention(suffix, keys, values, enable_gqa=group > 1)

    def unpacked() -> torch.Tensor:
        own_keys, own_values = pages.layer.unpack(table, dtype=torch.float16)
        return F.scaled_dot_product_attention(
            suffix, own_keys[None], own_values[None], enable_gqa=group > 1
        )

    detail = f"{plan.suffix} tokens"
    bytes_raw = 4 * context * plan.heads * plan.head_dim
    row = bench.row(
        "sdpa_fp16_suffix_attention", plain, bytes_raw,
        group=group, detail=detail, **{**where, "ratio": 1.0},
    )  # fmt: skip
    yield row
    yield bench.row(
        "suffix_prefill_attention", unpacked, pages.moved / batch,
        base=row.us, group=group, detail=detail, **where,
    )  # fmt: skip
