"""Calibration: what a model's queries look at, and how many bits each head deserves.

The profile itself takes one forward pass. The budgets take one pass over a short continuation for
every layer: a batch in which each row has the K or the V of one head quantised, all else exact.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel

from packkv.integrations.hf.attention import use_packed_attention
from packkv.integrations.hf.cache import PackedKVCache
from packkv.integrations.hf.model import shape_of
from packkv_kernels.budget import REFERENCE_LEVELS, Sensitivity, solve
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, HybridConfig
from packkv_kernels.errors import InvalidInput
from packkv_kernels.format import KVDtype
from packkv_kernels.paged_cache import PagedCache
from packkv_kernels.profile import Calibrator, Profile

__all__ = ["CalibrationConfig", "calibrate", "measure_sensitivity", "observe_profile"]

KV = list[tuple[torch.Tensor, torch.Tensor]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CalibrationConfig:
    """Settings of a calibration.

    Args:
        target_kl: mean KL per token between exact and packed cache that the budgets aim at.
        prefix_tokens: tokens of each text whose K and V are packed; a multiple of 64.
        scored_tokens: tokens after them over which the KL is measured.
        reference_step: multiplier of delta at which K is measured: coarse, to rise above noise.
        steps: multipliers of delta to choose from.
    """

    target_kl: float = 0.008
    prefix_tokens: int = 768
    scored_tokens: int = 128
    reference_step: float = 2.0
    steps: tuple[float, ...] = (
        *(0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0, 2.4, 2.8, 3.4, 4.0, 4.8, 5.6),
    )

    def __post_init__(self) -> None:
        if self.prefix_tokens < BLOCK_TOKENS or self.prefix_tokens % BLOCK_TOKENS:
            raise InvalidInput(
                f"prefix_tokens {self.prefix_tokens} is not a positive multiple of {BLOCK_TOKENS}"
            )
        if self.scored_tokens < 1:
            raise InvalidInput(f"scored_tokens {self.scored_tokens} is not at least 1")

    @property
    def text_tokens(self) -> int:
        """Tokens that a text needs at least; the rest is ignored."""
        return self.prefix_tokens + self.scored_tokens


@torch.inference_mode()
def calibrate(
    model: PreTrainedModel,
    texts: Sequence[torch.Tensor],
    config: CalibrationConfig | None = None,
    *,
    progress: Progress = lambda done, total: None,
) -> Profile:
    """A profile with budgets per layer and KV head, solved to a KL target.

    Args:
        model: a decoder with full attention; its attention implementation is put back afterwards.
        texts: token ids [1, at least config.text_tokens], of any ordinary text.
        config: settings.
        progress: called with (steps done, steps in all).

    Raises:
        InvalidInput: no text, or one that is too short.
    """
    settings = config or CalibrationConfig()
    used = [_checked(text, settings) for text in texts]
    if not used:
        raise InvalidInput("calibration needs at least one text")
    before = model.config._attn_implementation
    try:
        profile = observe_profile(model, used)
        model.set_attn_implementation("sdpa")
        sensitivity = measure_sensitivity(model, used, profile, settings, progress=progress)
        return _solve_measured(model, used, profile, sensitivity, settings)
    finally:
        model.set_attn_implementation(before)


def observe_profile(model: PreTrainedModel, texts: Iterable[torch.Tensor]) -> Profile:
    """The profile without budgets: query weights and channel order, one pass over each text."""
    shape = shape_of(model)
    calibrator = Calibrator(shape)

    def observe(layer: int, query: torch.Tensor, keys: torch.Tensor) -> None:
        calibrator.observe(layer, query.transpose(0, 1), keys.transpose(0, 1))

    use_packed_attention(model)
    for text in texts:
        model(text, past_key_values=PackedKVCache(shape, lambda: None, observe=observe))
    return calibrator.finish()


def measure_sensitivity(
    model: PreTrainedModel,
    texts: Sequence[torch.Tensor],
    profile: Profile,
    config: CalibrationConfig,
    *,
    progress: Progress = lambda done, total: None,
) -> Sensitivity:
    """The KL of every head's K and V alone, and what K costs and loses at every step.

    Means over texts.
    """
    shape = shape_of(model)
    k_kl, v_kl = np.zeros((shape.layers, shape.heads)), np.zeros((shape.layers, shape.heads))
    k_bits = np.zeros((shape.layers, shape.heads, len(config.steps)))
    k_error = np.zeros_like(k_bits)
    total = len(texts) * shape.layers
    for number, text in enumerate(texts):
        run = _ExactRun(model, text, config.prefix_tokens)
        coarse, _ = _quantised(run.past, profile, shape, config.reference_step)
        coarse_error = _k_error(run.past, coarse, profile)
        for choice, step in enumerate(config.steps):
            quantised, bits = _quantised(run.past, profile, shape, step)
            k_bits[..., choice] += bits
            k_error[..., choice] += _k_error(run.past, quantised, profile) / coarse_error
        for layer in range(shape.layers):
            kl = run.kl_of(_one_head_at_a_time(run.past, coarse[layer], layer))
            k_kl[layer] += kl[: shape.heads]
            v_kl[layer] += kl[shape.heads :]
            progress(number * shape.layers + layer + 1, total)
    count = len(texts)
    return Sensitivity(
        k_kl / count, v_kl / count, np.array(config.steps), k_bits / count, k_error / count
    )


def _solve_measured(
    model: PreTrainedModel,
    texts: Sequence[torch.Tensor],
    profile: Profile,
    sensitivity: Sensitivity,
    config: CalibrationConfig,
) -> Profile:
    """Heads' KLs add up only roughly: solve, measure the whole, correct the aim, twice."""
    shape = shape_of(model)
    runs = [_ExactRun(model, text, config.prefix_tokens) for text in texts]
    aim = config.target_kl
    for _ in range(2):
        candidate = solve(profile, sensitivity, aim)
        measured = float(
            np.mean([run.kl_of(_quantised(run.past, candidate, shape, 1.0)[0])[0] for run in runs])
        )
        aim *= min(4.0, max(0.25, config.target_kl / max(measured, 1e-9)))
    return solve(profile, sensitivity, aim)


class _ExactRun:
    """One text run exactly: the K and V of its prefix, and what follows from them."""

    def __init__(self, model: PreTrainedModel, text: torch.Tensor, prefix_tokens: int) -> None:
        self._model = model
        self._rest = text[:, prefix_tokens:]
        cache = DynamicCache()
        model(text[:, :prefix_tokens], past_key_values=cache, logits_to_keep=1)
        self.past: KV = [(layer.keys, layer.values) for layer in cache.layers]
        self._exact = self._logits(self.past)

    def kl_of(self, past: KV) -> NDArray[np.float64]:
        """Mean KL per token, for each row of another past: float64 [rows]."""
        found = self._logits(past)
        divergence = (self._exact.exp() * (self._exact - found)).sum(-1).mean(-1)
        return divergence.double().numpy()

    def _logits(self, past: KV) -> torch.Tensor:
        rows = past[0][0].shape[0]
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        logits: torch.Tensor = self._model(
            self._rest.expand(rows, -1), past_key_values=cache
        ).logits
        return logits.float().log_softmax(-1)


def _one_head_at_a_time(past: KV, coarse: tuple[torch.Tensor, torch.Tensor], layer: int) -> KV:
    """2 · heads rows: first each has one head's K quantised in `layer`, then each one head's V."""
    heads = past[0][0].shape[1]
    rows = [
        (keys.expand(2 * heads, -1, -1, -1), values.expand(2 * heads, -1, -1, -1))
        for keys, values in past
    ]
    keys, values = (part.clone() for part in rows[layer])
    for head in range(heads):
        keys[head, head] = coarse[0][0, head]
        values[heads + head, head] = coarse[1][0, head]
    rows[layer] = (keys, values)
    return rows


def _quantised(
    past: KV, profile: Profile, shape: CacheShape, step: float
) -> tuple[KV, NDArray[np.float64]]:
    """A past through the codec and back, and bits per value of K's and V's sections.

    Returns:
        K and V [1, heads, tokens, head_dim] per layer, and float64 [layers, heads].
    """
    # pages of any size must fit: every value as fp16, and as much again for metadata
    tokens = past[0][0].shape[2]
    capacity = 8 * tokens * shape.layers * shape.heads * shape.head_dim
    config = HybridConfig(delta=step, v_levels=REFERENCE_LEVELS)
    dtype = KVDtype[str(past[0][0].dtype).removeprefix("torch.").upper()]
    cache = PagedCache(shape, config, profile, capacity_bytes=capacity, kv_dtype=dtype)
    pages = list(cache.encode([(keys[0], values[0]) for keys, values in past], first_token=0))
    unpacked = [cache.unpack(page) for page in pages]
    keys = torch.cat([keys for keys, _ in unpacked], dim=2)
    values = torch.cat([values for _, values in unpacked], dim=2)
    total = np.sum([cache.section_bytes(page) for page in pages], axis=0)
    bits = 8.0 * total / (tokens * shape.head_dim)
    return [(keys[layer][None], values[layer][None]) for layer in range(shape.layers)], bits


def _k_error(exact: KV, quantised: KV, profile: Profile) -> NDArray[np.float64]:
    """Mean square error of K in score units, float64 [layers, heads]; never 0."""
    errors = []
    for (wanted, _), (decoded, _), weights in zip(exact, quantised, profile.q_rms, strict=True):
        weighted = (decoded - wanted)[0].double() * torch.from_numpy(weights[:, None].copy())
        errors.append(weighted.square().mean((1, 2)).cpu().numpy())
    found: NDArray[np.float64] = np.maximum(np.stack(errors), np.finfo(np.float64).tiny)
    return found


def _checked(text: torch.Tensor, config: CalibrationConfig) -> torch.Tensor:
    if text.ndim != 2 or text.shape[0] != 1 or text.shape[1] < config.text_tokens:
        raise InvalidInput(
            f"a text of {list(text.shape)} token ids; calibration needs [1, {config.text_tokens}]"
        )
    return text[:, : config.text_tokens]
