"""KVCompCache: a transformers Cache that keeps K and V as KVComp does (arXiv 2509.00579)."""

from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.entropy import KVCompConfig, KVCompSide

__all__ = ["KVCompCache"]


class KVCompCache(Cache):  # type: ignore[misc]
    """The past of a batch, compressed by KVComp: for comparison, and for any stock model.

    ```
    cache = KVCompCache(model.config.num_hidden_layers, KVCompConfig(rel_k=0.1, rel_v=0.15))
    output = model.generate(input_ids, past_key_values=cache)
    ```

    New tokens wait in an exact buffer. When it overflows, its whole blocks of 64 tokens are
    compressed and appended, and the rest stays. The first to overflow is the prefill's: from it
    come the codebooks of K and V of each layer. The compressed past is decoded whenever attention
    asks for it, and not kept.
    """

    def __init__(self, layers: int, config: KVCompConfig | None = None) -> None:
        """
        Args:
            layers: how many the model has.
            config: the paper's parameters.
        """
        chosen = config or KVCompConfig()
        self.kvcomp_layers = [KVCompLayer(chosen) for _ in range(layers)]
        super().__init__(layers=self.kvcomp_layers)

    @property
    def nbytes(self) -> int:
        """All bytes of the past: blocks, offsets, codebooks, and the buffer as it is."""
        return sum(layer.nbytes for layer in self.kvcomp_layers)


class KVCompLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer: compressed tokens, then the buffer.

    Rows of a batch are but more heads to the codec: head h of row b is head b · heads + h.
    """

    is_compileable = False
    is_croppable = False  # compressing loses bits, so a rollback would leave a trace
    is_sliding = False
    supports_early_init = False

    def __init__(self, config: KVCompConfig) -> None:
        super().__init__()
        self._config = config
        self._sides: tuple[KVCompSide, KVCompSide] = (config.keys(), config.values())

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole past [batch, heads, tokens, head_dim]; compresses after it is handed out."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = torch.cat([self.keys, key_states], 2)
        self.values = torch.cat([self.values, value_states], 2)
        past = self._past(0, self.keys), self._past(1, self.values)
        if self.keys.shape[2] > self._config.buffer_tokens:
            self._compress_buffer()
        return past

    def _past(self, side: int, buffer: torch.Tensor) -> torch.Tensor:
        compressed = self._sides[side]
        if compressed.tokens == 0:
            return buffer
        batch, heads, _, head_dim = buffer.shape
        decoded = torch.from_numpy(compressed.decode()).permute(1, 0, 2)
        decoded = decoded.reshape(batch, heads, -1, head_dim).to(buffer)
        return torch.cat([decoded, buffer], 2)

    def _compress_buffer(self) -> None:
        """Cuts whole blocks off the buffer's old end (the paper's buffer truncation)."""
        whole = self.keys.shape[2] // BLOCK_TOKENS * BLOCK_TOKENS
        for side, buffer in zip(self._sides, (self.keys, self.values), strict=True):
            oldest = buffer[:, :, :whole].detach().float().cpu().flatten(0, 1)
            side.append(oldest.transpose(0, 1).contiguous().numpy())
        # cloned, or the compressed tokens' memory would stay
        self.keys, self.values = self.keys[:, :, whole:].clone(), self.values[:, :, whole:].clone()

    @property
    def nbytes(self) -> int:
        compressed = sum(side.nbytes for side in self._sides)
        if not self.is_initialized:
            return compressed
        return compressed + self.keys.nbytes + self.values.nbytes

    def get_seq_length(self) -> int:
        return self._sides[0].tokens + (self.keys.shape[2] if self.is_initialized else 0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self._sides = (self._config.keys(), self._config.values())
        self.keys = self.values = torch.empty(0)
        self.is_initialized = False

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self.batch_select_indices(torch.arange(len(self.keys)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these rows of the batch, in this order."""
        if not self.is_initialized:
            return
        heads = self.keys.shape[1]
        rows = torch.arange(len(self.keys))[indices.cpu()].numpy()
        columns = (rows[:, None] * heads + np.arange(heads)).reshape(-1)
        for side in self._sides:
            if side.tokens:
                side.select_heads(columns)
        self.keys, self.values = self.keys[indices], self.values[indices]
