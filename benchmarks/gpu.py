"""Checks every Triton kernel against the reference on a GPU, then times them, in ten minutes.

    python benchmarks/gpu.py --json gpu.json --csv gpu.csv

Nothing is timed before everything is right. A call is captured in a CUDA graph, the L2 cache is
overwritten between replays, and the median is kept. GB/s counts the bytes that must move: sections
and directory of packed pages, or K and V in fp16. What no longer fits the time is listed as
skipped. With TRITON_INTERPRET=1 and --check-only the checks run on a machine without a
GPU.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from packkv_kernels.attention import PackedLayer, reference
from packkv_kernels.attention.triton import DeviceLayer, PackedDecode, resident_layer
from packkv_kernels.compress import encode_layer, plan_layers
from packkv_kernels.compress.triton.blocks import Encoder
from packkv_kernels.compress.triton.target import INTERPRETED
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig, HybridConfig
from packkv_kernels.format.tile import DESCRIPTOR_WORDS
from packkv_kernels.profile import Profile
from packkv_kernels.testing import assert_close, random_kv, random_profile

HEADS = 8
HEAD_DIM = 128
# K and V of a case in fp16 stay below 4 GiB
MOST_TOKENS = 1 << 20
# K of unit variance then needs about 4 bits
CODEC = HybridConfig(delta=0.45)
REPLAYS = 30
SUFFIX = 256


@dataclass(frozen=True)
class Row:
    """One measurement; the speed-up is against torch's fp16 SDPA, 0 where there is none."""

    kernel: str
    context: int
    batch: int
    group: int
    us: float
    gbs: float
    ratio: float
    speedup_vs_sdpa_fp16: float
    rel_error: float


def main(arguments: list[str]) -> int:
    """Checks, then measures; the exit status is 2 where there is nothing to run on."""
    options = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not (options.check_only and INTERPRETED):
        print("no GPU here: nothing to time (--check-only needs TRITON_INTERPRET=1)")
        return 2
    started = time.monotonic()
    check_kernels(device)
    print(f"every kernel agrees with the reference ({time.monotonic() - started:.0f} s)")
    if options.check_only:
        return 0
    rows, skipped = [], []
    for name, measure in measurements(options.contexts, options.batches, options.groups, device):
        if time.monotonic() - started > options.seconds:
            skipped.append(name)
            continue
        found = measure()
        rows += found
        for row in found:
            print(f"{row.kernel:24} {name:32} {row.us:10.1f} µs {row.gbs:8.1f} GB/s")
        torch.cuda.empty_cache()
    write(options.json, options.csv, rows, skipped)
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--csv", type=Path, help="append a line per figure to this file")
    parser.add_argument("--seconds", type=float, default=480, help="start nothing after this long")
    parser.add_argument("--check-only", action="store_true", help="check, and time nothing")
    parser.add_argument("--contexts", type=int, nargs="+", default=[4096, 32768, 131072])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 4, 8])
    options = parser.parse_args(arguments)
    for context in options.contexts:
        if context <= 0 or context % BLOCK_TOKENS:
            parser.error(f"context {context} is not a multiple of {BLOCK_TOKENS}")
    if any(group not in range(1, 17) for group in options.groups):
        parser.error(f"groups {options.groups} are not all in 1 … 16")
    if any(batch < 1 for batch in options.batches):
        parser.error(f"batches {options.batches} are not all positive")
    return options


def check_kernels(device: torch.device) -> None:
    """Encode to the byte, then attention, on small tensors of every codec that has tiles."""
    # planes of every kind: also units without a bit, and with eight
    narrow, wide = "hybrid:delta=4,v_levels=2", "hybrid:delta=0.3,v_levels=16"
    for spelled in ("hybrid", narrow, wide, "packkv"):
        for head_dim in (64,) if INTERPRETED else (64, 128):
            shape, config = CacheShape(1, 2, head_dim), CodecConfig.parse(spelled)
            profile = random_profile(shape) if config.needs_profile else None
            keys, values = (part[0].to(device) for part in random_kv(shape, 2 * BLOCK_TOKENS))
            found, right = (
                encode_layer(
                    *(keys, values), layer=0, config=config, profile=profile, backend=backend
                )
                for backend in ("triton", "reference")
            )
            if found != right:
                raise AssertionError(f"{spelled}, head_dim {head_dim}: other bytes")
            layer = packed_layer(config, profile, keys[None], values[None])
            check_attention(layer, device, f"{spelled}, head_dim {head_dim}")


def check_attention(layer: PackedLayer, device: torch.device, what: str) -> float:
    """Compares decode attention over all pages with the reference; returns the largest error."""
    slots = np.arange(len(layer.bases), dtype=np.int32)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(layer.heads * 3, 1, layer.head_dim, generator=generator)
    (right,) = reference.packed_states([query], layer, [slots], layer.head_dim**-0.5)
    assert right is not None
    resident = resident_layer(layer, slots, device)
    out, lse = decode_call(resident, query.view(1, layer.heads, 3, -1).to(device), len(slots), 1)()
    config = layer.plan.config
    # the query is rounded to fp16 in units of the step, so that errors grow with a coarse one
    bound = 4e-3 * (max(1.0, config.delta) if isinstance(config, HybridConfig) else 1.0)
    assert_close(out.view(right.out.shape).cpu(), right.out, bound, f"{what}: out")
    assert_close(lse.view(right.lse.shape).cpu(), right.lse, bound, f"{what}: lse")
    return float((out.view(right.out.shape).cpu() - right.out).abs().max())


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
    layer: DeviceLayer, query: torch.Tensor, pages: int, batch: int
) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """Attention of `batch` sequences that own `pages` pages each, one after the other."""
    device = query.device
    table = torch.arange(batch * pages, dtype=torch.int32, device=device).view(batch, pages)
    counts = torch.full((batch,), pages, dtype=torch.int32, device=device)
    splits = max(1, min(pages // 4, 1024 // (batch * layer.heads)))
    decode = PackedDecode(layer, batch=batch, rows=query.shape[2], max_pages=pages, splits=splits)
    return lambda: decode(query, table, counts, layer.head_dim**-0.5)


def measurements(
    contexts: list[int], batches: list[int], groups: list[int], device: torch.device
) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """What is measured, most telling first: (name, work)."""
    for batch in batches:
        for context in contexts:
            if batch * context <= MOST_TOKENS:
                name = f"context {context}, batch {batch}"
                yield name, lambda c=context, b=batch: measure_case(c, b, groups, device)  # type: ignore[misc]


def measure_case(context: int, batch: int, groups: list[int], device: torch.device) -> list[Row]:
    """Compress, unpack, suffix prefill and decode over one set of pages."""
    tokens, shape = context * batch, CacheShape(1, HEADS, HEAD_DIM)
    dims = (1, tokens, HEADS, HEAD_DIM)
    keys, values = (torch.randn(dims, dtype=torch.float16, device=device) for _ in range(2))
    raw_bytes = 2 * keys.nbytes
    profile = Profile.identity(shape)
    encode = Encoder(plan_layers(CODEC, profile, shape), device)
    rows = []

    def add(kernel: str, group: int, us: float, moved: float, ratio: float, base: float = 0.0,
            error: float = 0.0) -> None:  # fmt: skip
        speedup = base / us if base else 0.0
        rows.append(Row(kernel, context, batch, group, us, moved / us / 1e3, ratio, speedup, error))

    packed = packed_layer(CODEC, profile, keys, values)
    layer = resident_layer(packed, np.arange(tokens // BLOCK_TOKENS, dtype=np.int32), device)
    held = packed.words.nbytes + layer.directory.nbytes
    ratio = raw_bytes / packed.words.nbytes
    add("compress", 0, timed(lambda: encode(keys, values, 0)), raw_bytes, ratio)
    pages = torch.arange(context // BLOCK_TOKENS, dtype=torch.int32, device=device)

    def unpack() -> tuple[torch.Tensor, torch.Tensor]:
        return layer.unpack(pages, dtype=torch.float16)

    add("unpack", 0, timed(unpack), raw_bytes / batch, ratio)
    dense_keys, dense_values = (
        part.view(batch, context, HEADS, HEAD_DIM).transpose(1, 2).contiguous()
        for part in (keys, values)
    )
    for group in groups:
        query = torch.randn(batch, HEADS, group, HEAD_DIM, dtype=torch.float16, device=device)
        decode = decode_call(layer, query, context // BLOCK_TOKENS, batch)
        flat = query.view(batch, HEADS * group, 1, HEAD_DIM)

        def sdpa(flat: torch.Tensor = flat, group: int = group) -> torch.Tensor:
            return F.scaled_dot_product_attention(
                flat, dense_keys, dense_values, enable_gqa=group > 1
            )

        base = timed(sdpa)
        add("sdpa_fp16_attention", group, base, raw_bytes, 1.0, base)
        right = sdpa().view(query.shape).float()
        error = float((decode()[0] - right).norm() / right.norm())
        add("packed_decode_attention", group, timed(decode), held, ratio, base, error)
        suffix = torch.randn(1, HEADS * group, SUFFIX, HEAD_DIM, device=device).half()

        def prefill(suffix: torch.Tensor = suffix, group: int = group) -> torch.Tensor:
            own_keys, own_values = unpack()
            return F.scaled_dot_product_attention(
                suffix, own_keys[None], own_values[None], enable_gqa=group > 1
            )

        add("suffix_prefill_attention", group, timed(prefill), held / batch, ratio)
    return rows


def timed(call: Callable[[], object]) -> float:
    """Median µs of a replayed CUDA graph, with a cold L2 cache."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    other = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    times: list[float] = []
    for _ in range(REPLAYS):
        other.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return statistics.median(times)


def write(
    json_file: Path | None, csv_file: Path | None, rows: list[Row], skipped: list[str]
) -> None:
    """Writes the figures with the device and the day that they are of."""
    origin = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "codec": str(CODEC),
    }
    figures = [{**origin, **asdict(row)} for row in rows]
    if json_file is not None:
        json_file.write_text(json.dumps({"rows": figures, "skipped": skipped}, indent=1) + "\n")
    if csv_file is not None and figures:
        fresh = not csv_file.exists()
        with csv_file.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, figures[0].keys(), lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerows(figures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
