"""JoinedCache: caches of one row each, for steps that all of them take together."""

from collections.abc import Sequence

from packkv.integrations.hf.cache import PackedKVCache
from packkv.integrations.hf.fed_tokens import FedTokens

__all__ = ["JoinedCache"]


class JoinedCache(PackedKVCache):
    """Caches of one row each, for one step of all of them: one new token a row, of any length.

    ```
    joined = JoinedCache(caches)
    while …:
        positions = torch.tensor([[cache.length] for cache in caches])
        model(tokens, position_ids=positions, past_key_values=joined)
        joined.join(caches)                      # the same, or others
    ```

    The K and V go into the caches that were joined. Who steps again and again keeps this one: as
    long as as many are joined, page tables and buffers on a device stay where they are, and only
    what changed is written.
    """

    def __init__(self, caches: Sequence[PackedKVCache]) -> None:
        """Joins them; see `join`."""
        first = caches[0]
        super().__init__(first.shape, first._paged, recent_window=first._recent_window)
        self._joined: Sequence[PackedKVCache] = ()
        self.join(caches)

    def join(self, caches: Sequence[PackedKVCache]) -> None:
        """The next step is that of these caches, whatever became of the last one.

        Args:
            caches: of one connector, each with one row that has no padding, after its prefill.

        Raises:
            ValueError: a cache with more rows, with padding, or without known token ids.
        """
        tokens: list[FedTokens] = []
        for cache in caches:
            if len(cache.rows) != 1 or any(cache.padding) or cache._tokens is None:
                raise ValueError("only caches of one row that was fed token ids can be joined")
            if cache.is_arriving:
                raise ValueError("a cache whose prefix is still arriving cannot be joined")
            tokens += cache._tokens
        self._joined = list(caches)
        self.rows = [cache.rows[0] for cache in caches]
        self.padding = [0] * len(caches)
        self.matched_tokens = [row.tokens() for row in self.rows]
        self.length = max(cache.length for cache in caches)
        # the same objects: what this step adds belongs to the caches that were joined
        self._tokens = tokens
        # nobody repeats prompts here, and forked rows would not be those that were joined
        self._untouched = False
        for layer in self.layers:
            layer.reset()

    def end_step(self, new: int) -> None:
        super().end_step(new)
        for cache in self._joined:
            cache.length += new
            if self._tokens is None:
                cache._tokens = None
