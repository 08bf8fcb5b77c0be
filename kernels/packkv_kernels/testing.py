"""Tensors like a model's, and comparisons that say where they fail. For tests and benchmarks."""

import torch

from packkv_kernels.compress import encode_layer, kv_dtype
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig
from packkv_kernels.format import PayloadHeader, write_payload
from packkv_kernels.profile import Calibrator, Profile

__all__ = ["assert_close", "encode_payloads", "random_kv", "random_profile"]


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
