"""What a model's configuration says about positions: it decides the stored K values."""

from __future__ import annotations

from collections.abc import Mapping

from packkv.identity.canonical import canonical_digest, plain

_POSITION_KEYS = frozenset(
    {
        "alibi",
        "attention_chunk_size",
        "head_dim",
        "kv_lora_rank",
        "layer_types",
        "max_position_embeddings",
        "max_window_layers",
        "no_rope_layer_interval",
        "no_rope_layers",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "position_embedding_type",
        "qk_rope_head_dim",
        "rotary_dim",
        "rotary_emb_base",
        "rotary_pct",
        "sliding_window",
        "use_sliding_window",
    }
)


def rope_digest(config: Mapping[str, object]) -> str:
    """SHA-256, in hexadecimal, of what a model's configuration (JSON values) says of positions.

    That is every `rope*` key and the others that move or bound positions. Lengths are among them:
    scaled RoPE (YaRN, dynamic NTK, LongRoPE) derives its frequencies from them. A key that is
    absent and one that is null are the same.
    """
    return canonical_digest(_said(config))


def _said(config: Mapping[str, object]) -> dict[str, object]:
    said: dict[str, object] = {}
    for key, value in config.items():
        if value is None:
            continue
        if key.startswith("rope") or key in _POSITION_KEYS:
            said[key] = plain(value)
        # a multimodal model says it in its text_config
        elif key.endswith("_config") and isinstance(value, Mapping) and (inner := _said(value)):
            said[key] = inner
    return said
