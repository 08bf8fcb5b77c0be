"""A decoder whose past is packed pages, shared through the store."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from packkv.client import Store, open_store
from packkv.errors import PrefixLost
from packkv.identity import Namespace
from packkv.integrations.hf import JoinedCache, PackedKVCache, PackKV, PackKVConfig
from packkv.prefix_cache import Counters, PrefixCacheConfig
from packkv.worker.config import WorkerConfig
from packkv.worker.model.decoder import Sequence, positions


class PackedDecoder:
    """Decodes through a `PackKV` connector; all running sequences take each step in one pass."""

    def __init__(
        self, model: PreTrainedModel, connector: PackKV, client: Store | None = None
    ) -> None:
        """
        Args:
            model: the connector's.
            connector: closed with this.
            client: of the store, closed with this.
        """
        self._model = model
        self._connector = connector
        self._client = client
        self._joined: JoinedCache | None = None

    @classmethod
    def connect(cls, model: PreTrainedModel, config: WorkerConfig) -> PackedDecoder:
        """Over the store of `config`, which need not be there.

        Raises:
            ConfigError: the model cannot be packed, or its weights cannot be identified.
        """
        client = None if config.store is None else open_store(config.store, config=config.client)
        settings = PackKVConfig(
            codec=config.codec,
            cache_bytes=config.cache_bytes,
            prefix=PrefixCacheConfig(deadline_s=config.deadline_s, cold=config.cold),
        )
        return cls(model, PackKV(model, client, settings), client)

    @torch.inference_mode()
    def begin(self, prompt: list[int], cache_salt: str) -> Sequence:
        ids = torch.tensor([prompt])
        cache = self._connector.new_cache(ids, cache_salt=cache_salt, layerwise=True)
        # of the one row
        return Sequence(prompt, sum(cache.matched_tokens), cache)

    @torch.inference_mode()
    def prefill(self, sequence: Sequence) -> torch.Tensor:
        try:
            return self._prefill(sequence)
        except PrefixLost:
            # counted and logged where it was noticed; what this worker holds is still good
            assert isinstance(sequence.cache, PackedKVCache)
            cache_salt = sequence.cache.cache_salt
            sequence.cache.release()
            sequence.cache = self._connector.new_cache(
                torch.tensor([sequence.prompt]), cache_salt=cache_salt, fetch=False
            )
            sequence.cached_tokens = sum(sequence.cache.matched_tokens)
            return self._prefill(sequence)

    def _prefill(self, sequence: Sequence) -> torch.Tensor:
        rest = sequence.prompt[sequence.cached_tokens :]
        device = self._model.device
        # in one pass, so that every token sees the exact K and V of those before it
        output = self._model(
            torch.tensor([rest], device=device),
            position_ids=positions(sequence.cached_tokens, len(rest), device),
            past_key_values=sequence.cache,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[0, -1].float().cpu()
        return logits

    @torch.inference_mode()
    def step(self, sequences: list[Sequence], token_ids: list[int]) -> torch.Tensor:
        caches = [sequence.cache for sequence in sequences]
        if self._joined is None:
            self._joined = JoinedCache(caches)
        else:
            self._joined.join(caches)
        device = self._model.device
        output = self._model(
            torch.tensor(token_ids, device=device)[:, None],
            position_ids=torch.tensor([[cache.length] for cache in caches], device=device),
            past_key_values=self._joined,
        )
        logits: torch.Tensor = output.logits[:, -1].float().cpu()
        return logits

    def namespace(self) -> Namespace:
        return self._connector.namespace

    def block_names(self, prompt: list[int], cache_salt: str) -> list[bytes]:
        return self._connector.block_names(prompt, cache_salt)

    @torch.inference_mode()
    def share(self, sequence: Sequence) -> None:
        self._connector.publish(sequence.cache)

    def end(self, sequence: Sequence) -> None:
        sequence.cache.release()

    def counters(self) -> Counters:
        return self._connector.counters

    def close(self, timeout_s: float) -> None:
        self._connector.close(timeout_s)
        if self._client is not None:
            self._client.close()


def warm_up(model: PreTrainedModel, codec: str) -> None:
    """Compiles and touches every path once, over random ids and a connector that is thrown away."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(0, vocabulary, (200,), generator=generator).tolist()
    settings = PackKVConfig(
        codec=codec, weights_digest="warm-up", calibration_tokens=128, cache_bytes=64 << 20
    )
    decoder = PackedDecoder(model, PackKV(model, None, settings))
    # the first may calibrate; the second finds its blocks
    for length in (150, 200):
        sequence = decoder.begin(ids[:length], "")
        decoder.prefill(sequence)
        decoder.step([sequence], [ids[0]])
        decoder.share(sequence)
        decoder.end(sequence)
    decoder.close(0)
