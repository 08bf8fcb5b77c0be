"""What PackKV needs to know of a transformers model: its shape, and who may share its blocks."""

import hashlib
import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from packkv.errors import ConfigError
from packkv.identity import PROFILE_FILE, Namespace, rope_digest, weights_digest
from packkv.prefix_cache import codec_identity
from packkv_kernels.config import CacheShape, CodecConfig
from packkv_kernels.format import KVDtype
from packkv_kernels.profile import Profile

_DTYPES = {
    torch.float16: KVDtype.FLOAT16,
    torch.bfloat16: KVDtype.BFLOAT16,
    torch.float32: KVDtype.FLOAT32,
}


def shape_of(model: PreTrainedModel) -> CacheShape:
    """Layers, KV heads and head_dim of a decoder with full or sliding attention in every layer.

    Raises:
        ConfigError: the model keeps something else than K and V per head.
    """
    config = model.config.get_text_config(decoder=True)
    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    plain = "sliding_attention" if slides else "full_attention"
    kinds = set(getattr(config, "layer_types", None) or [plain])
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise ConfigError(
            f"PackKV packs full and sliding attention only; this model has {sorted(kinds)}"
        )
    if getattr(config, "kv_lora_rank", None):
        raise ConfigError("PackKV does not pack latent attention (MLA) in this version")
    q_heads = config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or q_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // q_heads
    return CacheShape(config.num_hidden_layers, heads, head_dim)


def kv_dtype_of(model: PreTrainedModel) -> KVDtype:
    """What the model computes K and V in."""
    dtype = model.dtype
    if dtype not in _DTYPES:
        raise ConfigError(f"PackKV packs float16, bfloat16 and float32, not {dtype}")
    return _DTYPES[dtype]


def profile_beside(model: PreTrainedModel) -> Profile | None:
    """The profile in the folder that a model was loaded from, if it was calibrated.

    Raises:
        ProfileError: there is one, and it cannot be read.
    """
    file = Path(model.name_or_path or "") / PROFILE_FILE
    return Profile.from_bytes(file.read_bytes()) if file.is_file() else None


def namespace_of(
    model: PreTrainedModel,
    codec: CodecConfig,
    *,
    model_name: str | None,
    weights: str | None,
    adapter_digest: str | None,
    tenant_salt: str,
) -> Namespace:
    """The namespace of a loaded model, without a profile yet.

    Args:
        model: as loaded; its configuration decides about positions and quantised weights.
        codec: the codec of its blocks.
        model_name: for people; None takes the name it was loaded under.
        weights: digest or immutable revision of its weights; None digests the folder it came from.
        adapter_digest: of the LoRA adapter in use; required when one is.
        tenant_salt: keeps tenants apart.

    Raises:
        ConfigError: the weights or the adapter cannot be identified without doubt.
    """
    if adapter_digest is None and getattr(model, "_hf_peft_config_loaded", False):
        raise ConfigError(
            "the model has an adapter loaded: pass adapter_digest, or its blocks would be taken "
            "for the bare model's"
        )
    config = model.config.to_dict()
    return Namespace(
        model=model_name or Path(model.name_or_path).name or type(model).__name__,
        weights_digest=_with_quantization(weights or _digest_of_folder(model), config),
        adapter_digest=adapter_digest,
        kv_dtype=kv_dtype_of(model).name.lower(),
        codec=codec_identity(codec),
        profile_digest=None,
        rope_digest=rope_digest(config),
        tenant_salt=tenant_salt,
    )


def _digest_of_folder(model: PreTrainedModel) -> str:
    if model.name_or_path and Path(model.name_or_path).exists():
        return weights_digest(model.name_or_path)
    raise ConfigError(
        f"cannot tell which weights {model.name_or_path or type(model).__name__!r} has: pass "
        "weights_digest (packkv.identity.weights_digest of its folder, or an immutable revision)"
    )


def _with_quantization(digest: str, config: dict[str, object]) -> str:
    """Weights quantised while loading compute other K and V than the file's own."""
    quantization = config.get("quantization_config")
    if quantization is None:
        return digest
    text = json.dumps(quantization, sort_keys=True, default=str)
    return hashlib.sha256(f"{digest}\n{text}".encode()).hexdigest()
