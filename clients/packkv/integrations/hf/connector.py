"""PackKV: connects a transformers model to the store."""

import logging
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from packkv.client import Store, open_store
from packkv.errors import ConfigError, PackKVError
from packkv.hashing import chain_hashes
from packkv.identity import Namespace
from packkv.integrations.hf.attention import ATTENTION, use_packed_attention
from packkv.integrations.hf.cache import PackedKVCache, left_padding
from packkv.integrations.hf.model import kv_dtype_of, namespace_of, profile_beside, shape_of
from packkv.integrations.hf.prefix import FoundPrefix
from packkv.prefix_cache import Counters, PrefixCache, PrefixCacheConfig, adopt_profile
from packkv_kernels.budget import uniform
from packkv_kernels.config import BLOCK_TOKENS, CodecConfig
from packkv_kernels.entropy import section_decoder
from packkv_kernels.errors import ProfileError
from packkv_kernels.paged_cache import PagedCache, SequenceCache
from packkv_kernels.profile import Calibrator, Profile

__all__ = ["PackKV", "PackKVConfig"]

log = logging.getLogger("packkv")


@dataclass(frozen=True)
class PackKVConfig:
    """Settings of the transformers connector.

    Args:
        codec: "hybrid", "packkv" or "raw", with parameters as in "hybrid:delta=1.0,v_levels=8".
        backend: of codec and attention, a name from `available_backends`; None takes the best for
            the model's device: "triton" on a GPU, where pages then lie.
        cache_bytes: memory for packed pages; what does not fit stays uncompressed or is forgotten.
        recent_window: newest tokens of a sequence that stay exact although a block is full.
        calibration_tokens: the first prefill of at least this many tokens makes the profile, when
            neither the caller nor the store has one. Until then nothing is packed or published.
        model_name: for people; None takes the name the model was loaded under.
        weights_digest: digest or immutable revision of the weights; None digests their folder.
        adapter_digest: of the LoRA adapter in use.
        tenant_salt: keeps tenants apart.
        prefix: deadlines and bounds of the store's use.
    """

    codec: str = "hybrid"
    backend: str | None = None
    cache_bytes: int = 1 << 30
    recent_window: int = 0
    calibration_tokens: int = 512
    model_name: str | None = None
    weights_digest: str | None = None
    adapter_digest: str | None = None
    tenant_salt: str = ""
    prefix: PrefixCacheConfig = field(default_factory=PrefixCacheConfig)


class PackKV:
    """A stock transformers model whose KV cache is packed, and shared through a store.

    ```
    packkv = PackKV(model, store="127.0.0.1:7437")
    cache = packkv.new_cache(input_ids)                       # fetches the longest stored prefix
    output = model.generate(input_ids, past_key_values=cache) # attends over the packed bytes
    packkv.publish(cache)                                     # in the background
    ```

    The store is optional at every moment: without it, or with one that is slow, dead or wrong, the
    model computes what is missing. Use one connector from one thread.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        store: str | Store | None = None,
        config: PackKVConfig | None = None,
        *,
        profile: Profile | None = None,
    ) -> None:
        """
        Args:
            model: a decoder with full or sliding attention, on one device.
            store: address of a store, or a client with its own settings; None shares nothing.
            config: settings.
            profile: of an earlier calibration of this model; None takes the one in the model's
                folder, or the store's, or makes one from the first long prefill.

        Raises:
            ConfigError: the model cannot be packed, or its weights cannot be identified.
        """
        self.config = config or PackKVConfig()
        self.codec = CodecConfig.parse(self.config.codec)
        self.shape = shape_of(model)
        self.profile: Profile | None = None
        self._kv_dtype, self._device = kv_dtype_of(model), model.device
        self._namespace = namespace_of(
            model,
            self.codec,
            model_name=self.config.model_name,
            weights=self.config.weights_digest,
            adapter_digest=self.config.adapter_digest,
            tenant_salt=self.config.tenant_salt,
        )
        self._owns_client = isinstance(store, str)
        self._client = open_store(store) if isinstance(store, str) else store
        self._paged: PagedCache | None = None
        self._prefix_cache: PrefixCache | None = None
        self._calibrator: Calibrator | None = None
        use_packed_attention(model)
        self._hook = model.register_forward_pre_hook(_note_input_ids, with_kwargs=True)
        if not self.codec.needs_profile:
            self._begin(None)
        elif (calibrated := profile or profile_beside(model)) is not None:
            self._offer(calibrated)
            self._begin(calibrated)
        elif (stored := self._stored_profile()) is not None:
            self._begin(stored)
        else:
            self._calibrator = Calibrator(self.shape, self.codec.sinks)

    def new_cache(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        cache_salt: str = "",
        fetch: bool = True,
        layerwise: bool = False,
    ) -> PackedKVCache:
        """A cache that already holds the longest known prefix of each prompt.

        With `layerwise` its last blocks may still be arriving: every layer of the model then waits
        for its part of them, so that the first computes while the last is on its way. When they do
        not come whole, or not in time, the forward pass raises `packkv.errors.PrefixLost`: only
        callers that can begin again should ask for it. They `release` the cache and run the model
        anew with another one, as from `new_cache(..., fetch=False)`. Nothing that was computed
        before may be used; whatever comes out of a pass that does not raise is right.

        Args:
            input_ids: [batch, tokens], the prompt that `generate` or the model gets next.
            attention_mask: [batch, tokens] of a left-padded batch.
            cache_salt: only caches with the same one share blocks, here and in the store.
            fetch: ask the store; otherwise the prefix is what this worker holds.
            layerwise: the forward pass may begin before the prefix is here. For one prompt; a
                batch is loaded whole, and so is what comes from a store on this host.

        Returns:
            The cache to pass as `past_key_values`. Its length is the same for every row, as
            transformers needs it, so a batch skips what its least matched row allows.
        """
        cache = PackedKVCache(
            self.shape,
            lambda: self._paged,
            recent_window=self.config.recent_window,
            observe=self._observe,
            on_prefill=self._observe_prefill,
            cache_salt=cache_salt,
        )
        if self._calibrator is not None and (stored := self._stored_profile()) is not None:
            # another worker has calibrated since
            self._begin(stored)
        prompts, padding = _prompts(input_ids, attention_mask)
        one = layerwise and len(prompts) == 1
        prefixes = [self._prefix(tokens, cache_salt, fetch, one) for tokens in prompts]
        pages = [[] if prefix is None else prefix.pages for prefix in prefixes]
        pairs = list(zip(pages, padding, strict=True))
        length = min(skip + BLOCK_TOKENS * len(held) for held, skip in pairs)
        rows = []
        for held, skip in pairs:
            row = cache.new_row()
            row.adopt(held)
            row.shorten(self._paged, max(0, length - skip))
            rows.append(row)
        tokens_held = [tokens[: row.tokens()] for tokens, row in zip(prompts, rows, strict=True)]
        cache.start(rows, padding, length, tokens_held)
        if one and prefixes[0] is not None and prefixes[0].arriving is not None:
            cache.expect(prefixes[0].arriving)
        return cache

    def publish(self, cache: PackedKVCache) -> int:
        """Names the packed blocks and queues those that the store may not have; how many.

        The token ids are those that the model was really given, so a block cannot get another
        prefix's name. A cache that was fed embeddings instead of token ids publishes nothing.
        """
        if self._paged is None or cache.token_ids is None or cache.is_arriving:
            return 0
        queued, root_hash = 0, self._root_hash(cache.cache_salt)
        for row, tokens in zip(cache.rows, cache.token_ids, strict=True):
            packed = tokens[: row.packed_tokens]
            self._name_pages(row, packed, root_hash)
            if self._prefix_cache is None:
                continue
            fresh = [
                (index, self._paged.payload(row.pages[index]))
                for index in self._prefix_cache.unpublished(packed, root_hash)
                if row.pages[index].chain_hash is not None
            ]
            queued += self._prefix_cache.publish(packed, fresh, root_hash)
        return queued

    def generate(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> Any:
        """`model.generate` with a fetched prefix before it and a publication after it."""
        cache = self.new_cache(input_ids, attention_mask)
        try:
            output = model.generate(
                input_ids, attention_mask=attention_mask, past_key_values=cache, **options
            )
            self.publish(cache)
            return output
        finally:
            cache.release()

    def block_names(self, tokens: list[int], cache_salt: str = "") -> list[bytes]:
        """The chain hashes of the blocks of a prompt that need not be computed if they are held.

        At least one token is always left to compute. From any thread.
        """
        usable = (len(tokens) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        return chain_hashes(self._root_hash(cache_salt), tokens[: max(0, usable)])

    def flush(self, timeout_s: float) -> bool:
        """Waits until everything published was answered or dropped; False when time ran out."""
        return self._prefix_cache is None or self._prefix_cache.flush(timeout_s)

    def forget_pages(self) -> int:
        """Gives up the pages that no cache holds; how many. What is asked next comes from the
        store, or is computed."""
        return 0 if self._paged is None else self._paged.forget()

    @property
    def namespace(self) -> Namespace:
        """Who may share blocks with this model; without a profile until it is calibrated."""
        return self._namespace

    @property
    def counters(self) -> Counters:
        """What the prefix cache did so far."""
        return Counters() if self._prefix_cache is None else self._prefix_cache.counters

    def close(self, timeout_s: float = 5.0) -> None:
        """Publishes what is queued, for at most `timeout_s`, and closes the connection."""
        self._hook.remove()
        if self._prefix_cache is not None:
            self._prefix_cache.close(timeout_s)
        if self._owns_client and self._client is not None:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, profile: Profile | None) -> None:
        """From here on blocks are packed, and shared when there is a store."""
        if profile is not None and profile.shape != self.shape:
            raise ConfigError(f"a profile of {profile.shape} does not fit a model of {self.shape}")
        self._paged = PagedCache(
            self.shape,
            self.codec,
            profile,
            capacity_bytes=self.config.cache_bytes,
            kv_dtype=self._kv_dtype,
            device=self._device,
            backend=self.config.backend,
        )
        self.profile = profile
        self._calibrator = None
        if profile is not None:
            self._namespace = replace(self._namespace, profile_digest=profile.digest.hex())
        if self._client is not None:
            self._prefix_cache = PrefixCache(
                self._client,
                self._namespace,
                self.codec,
                self.shape,
                config=self.config.prefix,
                decode=section_decoder(self.config.backend, self._device),
            )

    def _root_hash(self, cache_salt: str) -> bytes:
        return self._namespace.with_cache_salt(cache_salt).root_hash()

    def _name_pages(self, row: SequenceCache, tokens: list[int], root_hash: bytes) -> None:
        """Names what was packed here from exact K and V, so that it can be found again."""
        assert self._paged is not None
        hashes = chain_hashes(root_hash, tokens)
        took = 0.0 if self._prefix_cache is None else self._prefix_cache.block_compute_ms
        for index, (page, chain_hash) in enumerate(zip(row.pages, hashes, strict=True)):
            if page.chain_hash is None and index * BLOCK_TOKENS >= row.restored_tokens:
                self._paged.name(page, root_hash=root_hash, chain_hash=chain_hash, compute_ms=took)

    def _prefix(
        self, tokens: list[int], cache_salt: str, fetch: bool, layerwise: bool
    ) -> FoundPrefix | None:
        """The longest known prefix of a prompt; None while nothing can be packed."""
        if self._paged is None:
            return None
        prefix = FoundPrefix(self._paged, self.block_names(tokens, cache_salt))
        if fetch and self._prefix_cache is not None:
            root_hash = self._root_hash(cache_salt)
            prefix.fetch(self._prefix_cache, tokens, root_hash, layerwise=layerwise)
        return prefix

    def _stored_profile(self) -> Profile | None:
        """The profile in force for this model, if the store has one that fits."""
        if self._client is None:
            return None
        try:
            data = self._client.get_profile(self._namespace.model_digest())
            profile = None if data is None else Profile.from_bytes(data)
        except (PackKVError, ProfileError) as error:
            log.warning("no profile from the store: %s", error)
            return None
        return profile if profile is None or profile.shape == self.shape else None

    def _observe(self, layer: int, query: torch.Tensor, keys: torch.Tensor) -> None:
        """Calibrates on a first prefill that is long enough; ends with its last layer."""
        if self._calibrator is None or query.shape[1] < self.config.calibration_tokens:
            return
        self._calibrator.observe(layer, query.transpose(0, 1), keys.transpose(0, 1))
        if layer == self.shape.layers - 1:
            self._begin(self._agreed(uniform(self._calibrator.finish())))

    def _offer(self, calibrated: Profile) -> None:
        """Lets workers that have no profile use this one. What was calibrated is used regardless:
        it is the operator's choice, and better than one from a first prefill.
        """
        if self._client is None:
            return
        own = calibrated.to_bytes()
        if adopt_profile(self._client, self._namespace, own) != own:
            log.warning(
                "the store has another profile for this model: workers that adopted it share no "
                "blocks with this one; calibrate once and give all workers the same file"
            )

    def _agreed(self, own: Profile) -> Profile:
        """The store's profile for this model: the first that any worker published wins."""
        if self._client is None:
            return own

        def check(data: bytes) -> None:
            if Profile.from_bytes(data).shape != self.shape:
                raise ProfileError(f"the stored profile does not fit {self.shape}")

        data = adopt_profile(self._client, self._namespace, own.to_bytes(), check=check)
        return Profile.from_bytes(data)

    def _observe_prefill(self, tokens: int, seconds: float) -> None:
        if self._prefix_cache is not None:
            self._prefix_cache.observe_prefill(tokens, seconds)


def _note_input_ids(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Tells a packed cache which tokens the forward pass that begins is given.

    Raises:
        RuntimeError: the model's attention would not see the packed pages.
    """
    cache = kwargs.get("past_key_values")
    if isinstance(cache, PackedKVCache):
        used = getattr(module.config, "_attn_implementation", None)
        if used != ATTENTION:
            raise RuntimeError(
                f"this model runs another attention than {ATTENTION!r}, namely {used!r}, which "
                "cannot see packed pages: make a new PackKV, or leave the implementation alone"
            )
        cache.feed(kwargs.get("input_ids", args[0] if args else None))


def _prompts(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None
) -> tuple[list[list[int]], list[int]]:
    """Per row the real tokens, and how much padding stands before them."""
    batch, columns = input_ids.shape
    padding = [0] * batch if attention_mask is None else left_padding(attention_mask, columns)
    return [ids[skip:] for ids, skip in zip(input_ids.tolist(), padding, strict=True)], padding
