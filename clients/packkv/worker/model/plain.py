"""A decoder without PackKV: what the packed one is compared with."""

from __future__ import annotations

import torch
from transformers import DynamicCache, PreTrainedModel

from packkv.prefix_cache import Counters
from packkv.worker.model.decoder import Sequence, positions


class PlainDecoder:
    """Stock transformers. Nothing is found again, and sequences take each step one by one: its
    cache has no rows of different lengths.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def begin(self, prompt: list[int], cache_salt: str) -> Sequence:
        return Sequence(prompt, 0, DynamicCache(config=self._model.config))

    def prefill(self, sequence: Sequence) -> torch.Tensor:
        return self._run(sequence, sequence.prompt)

    def step(self, sequences: list[Sequence], token_ids: list[int]) -> torch.Tensor:
        pairs = zip(sequences, token_ids, strict=True)
        return torch.stack([self._run(sequence, [token_id]) for sequence, token_id in pairs])

    def namespace(self) -> None:
        return None

    def block_names(self, prompt: list[int], cache_salt: str) -> list[bytes]:
        return []

    def share(self, sequence: Sequence) -> None:
        """Nobody can use it."""

    def end(self, sequence: Sequence) -> None:
        sequence.cache = None

    def counters(self) -> Counters:
        return Counters()

    def close(self, timeout_s: float) -> None:
        """Nothing is held."""

    @torch.inference_mode()
    def _run(self, sequence: Sequence, token_ids: list[int]) -> torch.Tensor:
        device = self._model.device
        output = self._model(
            torch.tensor([token_ids], device=device),
            position_ids=positions(sequence.cache.get_seq_length(), len(token_ids), device),
            past_key_values=sequence.cache,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[0, -1].float().cpu()
        return logits
