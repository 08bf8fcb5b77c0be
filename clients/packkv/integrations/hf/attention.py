"""The attention that a stock transformers model calls when its cache is packed.

transformers lets an attention implementation be registered by name. `PackedLayer.update` hands the
new K and V back with itself attached; the function below finds it there and asks it to attend. The
mask function keeps the two-dimensional padding mask as it is: with packed pages nobody can
use a mask of [queries, keys].
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

__all__ = ["ATTENTION", "Attends", "use_packed_attention"]

ATTENTION = "packkv"

# the attribute of a K tensor that carries the cache layer it belongs to
TAG = "_packkv_layer"

# the attribute of a mask that carries the length of the sliding window it is for
_WINDOW = "_packkv_window"


class Attends(Protocol):
    """What the K tensor of a packed cache carries: the cache layer that can attend."""

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        padding_mask: torch.Tensor | None,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Attention output [batch, new, q_heads, head_dim]; a query sees `window` tokens."""
        ...


def use_packed_attention(model: PreTrainedModel) -> None:
    """Registers the implementation and makes `model` use it; its code stays untouched.

    Raises:
        ValueError: the model cannot switch its attention implementation.
    """
    AttentionInterface.register(ATTENTION, _packed_attention)
    AttentionMaskInterface.register(ATTENTION, _padding_mask)
    model.set_attn_implementation(ATTENTION)
    if model.config._attn_implementation != ATTENTION:
        raise ValueError(
            f"{type(model).__name__} does not let its attention implementation be changed; "
            "PackKV needs a model that supports transformers' AttentionInterface"
        )


def _packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Signature and layouts are those of transformers' AttentionInterface."""
    _refuse_unsupported(attention_mask, dropout, kwargs)
    masked = getattr(attention_mask, _WINDOW, None)
    if attention_mask is not None and not attention_mask.shape[1]:
        attention_mask = None
    if masked != sliding_window:
        raise ValueError(
            f"this model's mask is for a window of {masked} tokens, but its attention for one of "
            f"{sliding_window}: PackKV cannot tell which is meant"
        )
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: Attends | None = getattr(key, TAG, None)
    if layer is not None:
        return layer.attend(query, key, value, attention_mask, factor, sliding_window), None
    return _dense_attention(query, key, value, attention_mask, factor, sliding_window), None


def _dense_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    padding_mask: torch.Tensor | None,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """Ordinary causal attention, for a call without a cache or with another kind of cache."""
    new, tokens = query.shape[2], key.shape[2]
    mask = torch.ones(new, tokens, dtype=torch.bool, device=query.device).tril(tokens - new)
    if window is not None:
        mask = mask.triu(tokens - new - window + 1)
    if padding_mask is not None:
        # a padded query sees itself, so that no row of the softmax is empty
        diagonal = torch.eye(tokens, dtype=torch.bool, device=query.device)[tokens - new :]
        mask = (mask & padding_mask[:, None, None, :]) | diagonal
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2).contiguous()


def _refuse_unsupported(
    attention_mask: torch.Tensor | None, dropout: float, options: dict[str, Any]
) -> None:
    """Refuses what would otherwise be computed wrongly without a word."""
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(
            f"PackKV attends with a padding mask of [batch, tokens], not with one of "
            f"{list(attention_mask.shape)}: pass the tokenizer's attention_mask"
        )
    if dropout:
        raise ValueError(f"PackKV attends without dropout, not with {dropout}: call model.eval()")
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ValueError(f"PackKV does not support {name}={options[name]!r} in this version")


def _padding_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., bool] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    **kwargs: Any,
) -> torch.Tensor | None:
    """The padding mask [batch, kv_length], or None when nothing is padded.

    That of a sliding window is always there, and says how long the window is; it has no columns
    when nothing is padded.
    """
    columns = kv_length + kv_offset
    queries = torch.arange(q_offset, q_offset + q_length)
    if mask_function is not causal_mask_function and (
        local_size is None or not _is_window(mask_function, queries, columns, local_size)
    ):
        raise ValueError(
            "PackKV supports causal attention, full or in a sliding window; this model asks for "
            "another mask (packed sequences, prefix, bidirectional or chunked attention)"
        )
    mask = None
    if attention_mask is not None and not bool(attention_mask.all()):
        mask = F.pad(attention_mask, (0, columns - attention_mask.shape[-1]))
    if local_size is not None:
        mask = torch.ones(batch_size, 0, dtype=torch.bool) if mask is None else mask
        setattr(mask, _WINDOW, local_size)
    return mask


def _is_window(
    mask_function: Callable[..., Any],
    queries: torch.Tensor,
    columns: int,
    window: int,
) -> bool:
    """Whether a mask is that of a causal window, as far as the edges of each query's tell.

    A window of sequences that were packed into a row, of images that see both ways, or that is
    reset at each of its multiples, has another edge somewhere.
    """
    zero = torch.zeros(1, dtype=torch.long)
    for offset in (1, 0, -1, 1 - window, -window):
        keys = queries + offset
        inside = (keys >= 0) & (keys < columns)
        if not inside.any():
            continue
        seen = mask_function(zero, zero, queries[inside], keys[inside])
        if not bool((seen == (-window < offset <= 0)).all()):
            return False
    return True
