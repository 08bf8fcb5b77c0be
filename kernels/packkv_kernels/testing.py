"""Tensors like a model's, comparisons that say where they fail, and the error of each codec.

For tests and benchmarks. The bounds are those of docs/codec.md, "How far off a value may be".
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from packkv_kernels.attention import attend
from packkv_kernels.compress import encode_layer, kv_dtype
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig, HybridConfig
from packkv_kernels.format import KVDtype, PayloadHeader, read_payload, write_payload
from packkv_kernels.paged_cache import Page, PagedCache
from packkv_kernels.profile import Calibrator, Profile

__all__ = [
    "assert_close",
    "check_growing_decode",
    "encode_payloads",
    "halves_bound",
    "hybrid_k_bound",
    "hybrid_v_bound",
    "kvcomp_bound",
    "packkv_bound",
    "poisoned_memory",
    "random_kv",
    "random_profile",
]

# Steps of V by its levels: what values are cut with, and what they come back with.
_SPREAD = {2: 1.5958, 4: 1.0953, 8: 0.5860, 16: 0.3352}
_RESTORED = {2: 2.3139, 4: 1.1391, 8: 0.5977, 16: 0.3352}

# The coarsest step that a channel of K may have, in steps aimed at.
_COARSEST = 2 ** (7 / 8)


def random_kv(
    shape: CacheShape,
    tokens: int,
    *,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
    first_token: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V [layers, tokens, heads, head_dim] with what makes real caches hard.

    K has a few channels of large mean and spread and drifts slowly from token to token; V is
    close to Gaussian; the first four tokens of a sequence are sinks: huge K, tiny V.
    """
    generator = torch.Generator().manual_seed(seed)
    dims = (shape.layers, tokens, shape.heads, shape.head_dim)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    spread = torch.exp(normal(shape.layers, 1, shape.heads, shape.head_dim) * 0.7)
    outlier = normal(shape.layers, 1, shape.heads, shape.head_dim).abs() > 2
    mean = normal(shape.layers, 1, shape.heads, shape.head_dim) * (1 + 8 * outlier)
    drift = normal(*dims).cumsum(1) / max(tokens, 1) ** 0.5
    keys = mean + spread * (normal(*dims) + drift)
    values = 0.3 * normal(*dims) * torch.exp(0.3 * normal(shape.layers, 1, shape.heads, 1))
    if first_token == 0:
        keys[:, :4] *= 6
        values[:, :4] *= 0.02
    return keys.to(dtype), values.to(dtype)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New tensors of `torch.empty` are full of nonsense: whatever a kernel is to write comes so."""
    empty = torch.empty

    def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
        tensor = empty(*shape, **options)
        tensor.view(torch.uint8).fill_(0xA5)
        return tensor

    torch.empty = poisoned
    try:
        yield
    finally:
        torch.empty = empty


def random_profile(shape: CacheShape, *, seed: int = 0) -> Profile:
    """A profile as calibration would make it, with channels of unequal weight out of order."""
    generator = torch.Generator().manual_seed(seed)
    keys, _ = random_kv(shape, 192, dtype=torch.float32, seed=seed)
    calibrator = Calibrator(shape)
    for layer in range(shape.layers):
        dims = (192, 2 * shape.heads, shape.head_dim)
        weight = torch.exp(0.5 * torch.randn(dims[1:], generator=generator))
        queries = torch.randn(dims, generator=generator) * weight
        calibrator.observe(layer, queries, keys[layer])
    return calibrator.finish()


def encode_payloads(
    keys: torch.Tensor,
    values: torch.Tensor,
    config: CodecConfig,
    profile: Profile | None = None,
    *,
    first_token: int = 0,
    root_hash: bytes = bytes(32),
    chain_hash: bytes = bytes(32),
    backend: str | None = None,
) -> list[bytearray]:
    """Whole payloads of K and V [layers, tokens, heads, head_dim], one per 64 tokens."""
    layers, tokens, heads, head_dim = keys.shape
    encoded = [
        encode_layer(
            keys[layer],
            values[layer],
            layer=layer,
            config=config,
            profile=profile,
            first_token=first_token,
            backend=backend,
        )
        for layer in range(layers)
    ]
    digest = profile.digest if profile is not None and config.needs_profile else bytes(32)
    payloads = []
    for block, start in enumerate(range(0, tokens, BLOCK_TOKENS)):
        count, position = min(BLOCK_TOKENS, tokens - start), first_token + start
        header = PayloadHeader(
            codec=config.codec_id,
            kv_dtype=kv_dtype(keys.dtype),
            tokens=count,
            sinks=config.block_sinks(position, count),
            layers=layers,
            first_head=0,
            heads=heads,
            head_dim=head_dim,
            root_hash=root_hash,
            chain_hash=chain_hash,
            codec_digest=config.digest,
            profile_digest=digest,
            first_token=position,
        )
        sections = [section for layer in encoded for section in layer[block]]
        payloads.append(write_payload(header, sections))
    return payloads


def assert_close(
    found: torch.Tensor, wanted: torch.Tensor, bound: torch.Tensor | float, what: str = "value"
) -> None:
    """Fails with the place and size of the worst excess over an absolute bound; NaN never passes.

    Args:
        found, wanted: of one shape.
        bound: largest |found − wanted| allowed, broadcast to that shape.
        what: what is compared, for the message.
    """
    assert found.shape == wanted.shape, (
        f"{what}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    )
    error = (found.double() - wanted.double()).abs()
    limit = torch.as_tensor(bound, dtype=torch.float64).expand(error.shape)
    fits = error <= limit
    if fits.all():
        return
    excess = torch.where(fits, 0.0, (error - limit).nan_to_num(nan=torch.inf))
    place = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    raise AssertionError(
        f"{what}{list(place)} is {found[place].item()}, not {wanted[place].item()} ± "
        f"{limit[place].item()}; {int((~fits).sum())} of {fits.numel()} are off"
    )


def halves_bound(exact: torch.Tensor) -> torch.Tensor:
    """Error of fp16, as sinks and raw tiles have it: half an ulp, or half of a subnormal's."""
    return (exact.abs() * 2**-11).clamp_min(2**-25)


def hybrid_k_bound(keys: torch.Tensor, config: HybridConfig, profile: Profile) -> torch.Tensor:
    """Error of K of `hybrid`: half of the coarsest step.

    Args:
        keys: float64 [1, tokens, heads, head_dim], of layer 0.
        config: of the codec.
        profile: of the model.
    """
    step = torch.from_numpy(profile.k_steps(config)[0])[:, None].double()
    bound = (_COARSEST * step / 2 + keys.abs() * 1e-6).expand(keys.shape).clone()
    return bound.maximum(halves_bound(keys))


def hybrid_v_bound(rotated: torch.Tensor, levels: int) -> torch.Tensor:
    """Error of V of `hybrid`, rotated: half a step and what the levels are drawn apart, or the
    overshoot outside of them.

    Args:
        rotated: float64 [..., head_dim], V times `rotation`. Its scale is within 1/32 octave.
        levels: 2, 4, 8 or 16.
    """
    rms = rotated.square().mean(-1, keepdim=True).sqrt()
    last = (levels - 1) / 2
    apart = last * (_RESTORED[levels] - _SPREAD[levels])
    inside = (_SPREAD[levels] / 2 + apart) * rms * 2 ** (1 / 32)
    outside = rotated.abs() - last * _RESTORED[levels] * rms * 2 ** (-1 / 32)
    bound = inside.maximum(outside) * 1.0001
    # below the least scale a token comes back as 0
    return torch.where(rms < 2 ** (1 / 32 - 9) * 1.0001, bound.maximum(rotated.abs()), bound)


def packkv_bound(exact: torch.Tensor, rel: float) -> torch.Tensor:
    """Error of `packkv`: half a step of the token, float64 [layers, tokens, heads, head_dim]."""
    span = exact.amax((2, 3), keepdim=True) - exact.amin((2, 3), keepdim=True)
    bound = (rel * span / 2).expand(exact.shape) + exact.abs() * 1e-6
    return bound.maximum(halves_bound(exact))


def kvcomp_bound(exact: torch.Tensor, rel: float, axes: tuple[int, ...]) -> torch.Tensor:
    """Error of `kvcomp`: half a step of the unit, minimum and step rounded to fp16.

    Args:
        exact: float64 [blocks, 64, head_dim] of one head.
        rel: step as a share of the unit's range.
        axes: what a unit spans.
    """
    low, high = exact.amin(axes, keepdim=True), exact.amax(axes, keepdim=True)
    largest = low.abs().maximum(high.abs())
    ulp = (largest * 2**-10).clamp_min(2**-24)
    step = rel * (high - low + ulp) * (1 + 2**-10) + 2**-24
    return (step / 2 + largest * 1e-6).expand(exact.shape)


def check_growing_decode(device: torch.device, *, rounds: int = 3) -> None:
    """A decode step that follows sequences as they grow, by tokens and by pages, in place.

    On a GPU the step is captured in a CUDA graph once and replayed: appending K and V to the
    residual, then attention. Elsewhere it is called again, in Triton's interpreter.

    Args:
        device: where pages lie.
        rounds: steps; before the second a page joins a sequence.

    Raises:
        AssertionError: a result differs from the reference.
        InvalidInput: neither a GPU nor the interpreter.
    """
    # machines without a GPU never load it
    from packkv_kernels.attention.triton import DeviceLayer, PackedDecode, Residual

    shape, config = CacheShape(1, 2, 64), HybridConfig()
    profile = random_profile(shape)
    host, cache = (
        PagedCache(
            shape, config, profile,
            capacity_bytes=1 << 20, kv_dtype=KVDtype.FLOAT32, device=where, backend=backend,
        )
        for where, backend in ((None, "cpu"), (device, "triton"))
    )  # fmt: skip
    kv = random_kv(shape, 2 * BLOCK_TOKENS, dtype=torch.float32)
    payloads = [read_payload(data) for data in encode_payloads(*kv, config, profile)]
    generator = torch.Generator().manual_seed(1)
    tables = cache.page_tables(2, 4)
    layer = cache.layer(0)
    assert isinstance(layer, DeviceLayer)
    decode = PackedDecode(layer, batch=2, rows=3, max_pages=4, splits=2, room=16)
    room, lengths = torch.zeros(2, 2, 2, 16, 64, device=device), torch.zeros(2, dtype=torch.int32)
    residual = Residual(room[0], room[1], lengths.to(device))
    query, key, value = (torch.zeros(2, 2, n, 64, device=device) for n in (3, 1, 1))
    at = torch.arange(2, device=device)

    def step() -> None:
        place = residual.tokens.long()
        residual.keys[at, :, place], residual.values[at, :, place] = key[:, :, 0], value[:, :, 0]
        residual.tokens.add_(1)
        decode(query, tables.table, tables.pages, 0.125, residual)

    run = step if device.type != "cuda" else _captured(step)
    residual.tokens.zero_()
    pages: list[tuple[Page, Page]] = []
    exact: list[torch.Tensor] = [torch.empty(2, 2, 0, 64)] * 2
    for count in range(rounds):
        if count < len(payloads):
            pages.append((host.adopt(payloads[count]), cache.adopt(payloads[count])))
        held, own = (np.array([pair[side].slot for pair in pages], np.int32) for side in (0, 1))
        tables.update([own, own[1:]])
        fresh = [torch.randn(part.shape, generator=generator) for part in (query, key, value)]
        for part, given in zip((query, key, value), fresh, strict=True):
            part.copy_(given)
        exact = [torch.cat([old, new], 2) for old, new in zip(exact, fresh[1:], strict=True)]
        # the copies of a page are waited for outside of the graph
        cache.layer(0)
        run()
        wanted = attend(
            [row.reshape(6, 1, 64) for row in fresh[0]], host.layer(0), [held, held[1:]],
            list(exact[0]), list(exact[1]), scaling=0.125, backend="reference",
        )  # fmt: skip
        found = decode.out.cpu().view(2, 6, 1, 64)
        assert_close(found, torch.stack(wanted), 4e-3, f"step {count}")


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of a step that has run before: what compiles or allocates has done so."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
