"""K and V tensors to the sections of blocks, and payloads back to K and V."""

import torch

from packkv_kernels.backend import choose_backend
from packkv_kernels.compress import cpu, raw, reference
from packkv_kernels.compress.plan import LayerPlan, plan_layers
from packkv_kernels.compress.raw import kv_dtype
from packkv_kernels.compress.rotation import rotation
from packkv_kernels.config import MAX_HEAD_DIM, CacheShape, CodecConfig, CodecId
from packkv_kernels.errors import InvalidInput, PayloadError
from packkv_kernels.format import Payload, resident_sections
from packkv_kernels.profile import Profile

__all__ = [
    "LayerPlan",
    "check_input",
    "decode_block",
    "encode_layer",
    "encode_planned",
    "kv_dtype",
    "plan_layers",
    "rotation",
]

# The largest fp16: exact tokens and raw tiles are stored as fp16.
_LARGEST = 65_504.0


def encode_layer(
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    layer: int,
    config: CodecConfig,
    profile: Profile | None = None,
    first_token: int = 0,
    first_head: int = 0,
    backend: str | None = None,
) -> list[list[bytes]]:
    """Compresses K and V of one layer into sections, a block for every 64 tokens.

    Args:
        keys: [tokens, heads, head_dim], float16, bfloat16 or float32, any strides; post-RoPE.
        values: the same.
        layer: which layer of the model, for the profile and for messages.
        config: the codec.
        profile: of the whole model; only `hybrid` needs one.
        first_token: position of the first token in the sequence, a multiple of 64.
        first_head: which KV head of the model is the first here.
        backend: a name from `available_backends`, or None for the device's default. All of them
            give the same bytes.

    Returns:
        Sections [block][head]. The last block is partial when tokens is not a multiple of 64.

    Raises:
        InvalidInput: shape, dtype or position; NaN or infinity, or, unless the codec is raw,
            values beyond ±65,504. The message says where.
        ProfileError: a profile of another shape.
    """
    check_input(keys, values, layer, config, first_token)
    plan = _plan_of(keys, layer, config, profile, first_head)
    return _encode(keys.detach(), values.detach(), plan, first_token, backend)


def encode_planned(
    keys: torch.Tensor,
    values: torch.Tensor,
    plan: LayerPlan,
    *,
    layer: int,
    first_token: int = 0,
    backend: str | None = None,
) -> list[list[bytes]]:
    """`encode_layer` for callers that encode again and again, and keep the layer's plan.

    Args:
        plan: of `plan_layers`, for this layer and these heads.
        layer: for messages.
    """
    check_input(keys, values, layer, plan.config, first_token)
    return _encode(keys.detach(), values.detach(), plan, first_token, backend)


def _encode(
    keys: torch.Tensor,
    values: torch.Tensor,
    plan: LayerPlan,
    first_token: int,
    backend: str | None,
) -> list[list[bytes]]:
    if plan.config.codec_id is CodecId.RAW:
        return raw.encode_blocks(keys.cpu(), values.cpu())
    choice = choose_backend(backend, keys.device)
    if choice == "triton":
        # machines without a GPU never load it
        from packkv_kernels.compress.triton.blocks import encode_blocks

        return encode_blocks(keys, values, plan, first_token)
    encode = reference.encode_blocks if choice == "reference" else cpu.encode_blocks
    return encode(keys.cpu().float(), values.cpu().float(), plan, first_token)


def decode_block(
    payload: Payload,
    config: CodecConfig,
    profile: Profile | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of a block, each float32 [layers, tokens, heads, head_dim], natural channel order.

    Raises:
        PayloadError: reason "identity" if codec or profile are not the payload's, or "section".
        InvalidInput, ProfileError: the profile is missing or of another shape.
    """
    header = payload.header
    if header.codec is not config.codec_id or header.codec_digest != config.digest:
        raise PayloadError("identity", f"payload of codec {header.codec.name}, not of {config}")
    if config.needs_profile and profile and header.profile_digest != profile.digest:
        raise PayloadError(
            "identity",
            f"payload of profile {header.profile_digest.hex()}, not {profile.digest.hex()}",
        )
    resident = resident_sections(payload)
    plans = plan_layers(config, profile, header.shape, header.first_head)
    if choose_backend(backend, torch.device("cpu")) == "cpu":
        return cpu.decode_layers(resident, plans, header.tokens)
    layers = [
        reference.decode_layer(
            resident, range(layer * header.heads, (layer + 1) * header.heads), plan
        )
        for layer, plan in enumerate(plans)
    ]
    return torch.stack([k for k, _ in layers]), torch.stack([v for _, v in layers])


def _plan_of(
    keys: torch.Tensor, layer: int, config: CodecConfig, profile: Profile | None, first_head: int
) -> LayerPlan:
    layers = profile.shape.layers if profile is not None and config.needs_profile else layer + 1
    if not 0 <= layer < layers:
        raise InvalidInput(f"layer {layer} of a profile of {layers} layers")
    shape = CacheShape(layers, keys.shape[1], keys.shape[2])
    return plan_layers(config, profile, shape, first_head)[layer]


def check_input(
    keys: torch.Tensor, values: torch.Tensor, layer: int, config: CodecConfig, first_token: int
) -> None:
    """Refuses what `encode_layer` refuses, for callers that go past it.

    Raises:
        InvalidInput: as there.
    """
    _check_tensors(keys, values)
    _check_finite("K", keys, layer, config)
    _check_finite("V", values, layer, config)
    if first_token % 64:
        raise InvalidInput(f"first_token {first_token} is not a multiple of 64")


def _check_tensors(keys: torch.Tensor, values: torch.Tensor) -> None:
    if keys.ndim != 3 or keys.shape != values.shape or keys.shape[0] == 0 or keys.shape[1] == 0:
        raise InvalidInput(
            f"K {tuple(keys.shape)} and V {tuple(values.shape)} must both be "
            "[tokens, heads, head_dim] with at least one token and head"
        )
    if kv_dtype(keys.dtype) is not kv_dtype(values.dtype):
        raise InvalidInput(f"K is {keys.dtype}, but V {values.dtype}")
    if keys.shape[2] % 4 or not 4 <= keys.shape[2] <= MAX_HEAD_DIM:
        raise InvalidInput(f"head_dim {keys.shape[2]} is not a multiple of 4 in 4 … {MAX_HEAD_DIM}")


def _check_finite(name: str, values: torch.Tensor, layer: int, config: CodecConfig) -> None:
    limit = _LARGEST
    if config.codec_id is CodecId.RAW:
        limit = torch.finfo(values.dtype).max
    low, high = torch.aminmax(values.detach())
    # written so that NaN does not pass
    if -limit <= low.item() and high.item() <= limit:
        return
    # a comparison that NaN fails finds it, too
    token, head, channel = (~(values.abs() <= limit)).nonzero()[0].tolist()
    value = values[token, head, channel].item()
    raise InvalidInput(
        f"{name}[layer {layer}, token {token}, head {head}, channel {channel}] is {value}: "
        f"codec {config.name} takes finite values up to ±{limit:g}"
    )
