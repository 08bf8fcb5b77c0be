"""SequenceCache: one sequence's K and V, as packed pages and then exact tokens."""

import logging

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.config import BLOCK_TOKENS, CacheShape
from packkv_kernels.errors import CacheFull, InvalidInput
from packkv_kernels.paged_cache.cache import Page, PagedCache
from packkv_kernels.paged_cache.residual import ExactTokens, ResidualBuffer

log = logging.getLogger("packkv")


class SequenceCache:
    """Packed pages for the old tokens, uncompressed residual for the newest.

    Every layer of a forward pass appends its new K and V; `pack` then turns the oldest residual
    tokens into pages, 64 at a time, and keeps `recent_window` tokens exact. Pages are shared by
    reference count, so `fork` copies no packed byte.
    """

    def __init__(self, shape: CacheShape, *, recent_window: int = 0) -> None:
        if recent_window < 0:
            raise InvalidInput(f"recent_window is {recent_window}; it must be 0 or more")
        self.shape = shape
        self.recent_window = recent_window
        self.pages: list[Page] = []
        # Tokens before this position came from packed bytes once already. A page packed from them
        # again would differ from the block that is stored, so it is never published.
        self.restored_tokens = 0
        self._unpackable = False
        self._residual = [ResidualBuffer() for _ in range(shape.layers)]
        self._table: NDArray[np.int32] | None = None

    @property
    def packed_tokens(self) -> int:
        """Tokens held in pages."""
        return len(self.pages) * BLOCK_TOKENS

    def residual_tokens(self, layer: int = 0) -> int:
        """Uncompressed tokens of one layer; layers differ only inside a forward pass."""
        return self._residual[layer].tokens

    def tokens(self, layer: int = 0) -> int:
        """All tokens of one layer."""
        return self.packed_tokens + self.residual_tokens(layer)

    def page_table(self) -> NDArray[np.int32]:
        """Page slots in order, int32 [pages]; the same array until the pages are others."""
        if self._table is None:
            self._table = np.fromiter((page.slot for page in self.pages), np.int32, len(self.pages))
        return self._table

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> ExactTokens:
        """Appends new K and V [heads, new, head_dim]; returns the layer's whole residual.

        It is returned as it is held: the next call writes in it.
        """
        expected = (self.shape.heads, self.shape.head_dim)
        if (keys.shape[0], keys.shape[2]) != expected or keys.shape != values.shape:
            raise InvalidInput(
                f"K {tuple(keys.shape)} and V {tuple(values.shape)} must both be "
                f"[{expected[0]}, tokens, {expected[1]}]"
            )
        return self._residual[layer].append(keys, values)

    def adopt(self, pages: list[Page]) -> None:
        """Starts an empty sequence with pages that the caller holds; the holds pass over."""
        if self.tokens():
            raise InvalidInput(f"a sequence of {self.tokens()} tokens cannot take a prefix")
        self._hold(list(pages))

    def pack(self, cache: PagedCache) -> None:
        """Packs what is old enough. What cannot be packed stays exact: larger, never wrong."""
        ready = (self.residual_tokens() - self.recent_window) // BLOCK_TOKENS
        if ready <= 0 or self._unpackable:
            return
        tokens = ready * BLOCK_TOKENS
        layers = [self._oldest(layer, tokens) for layer in range(self.shape.layers)]
        fresh: list[Page] = []
        try:
            for page in cache.encode(layers, first_token=self.packed_tokens):
                fresh.append(page)
        except CacheFull as error:
            log.warning("%d tokens stay uncompressed for now: %s", tokens, error)
        except InvalidInput as error:
            # K or V that no codec may touch, such as NaN; trying again would find it again
            log.warning("this sequence stays uncompressed: %s", error)
            self._unpackable = True
        self._hold(self.pages + fresh)
        for residual in self._residual:
            residual.drop_first(len(fresh) * BLOCK_TOKENS)

    def shorten(self, cache: PagedCache | None, tokens: int) -> None:
        """Keeps the first `tokens` tokens; a page that is cut returns to the residual, unpacked."""
        if not 0 <= tokens <= self.tokens():
            raise InvalidInput(f"cannot keep {tokens} of {self.tokens()} tokens")
        keep_exact = tokens - self.packed_tokens
        if keep_exact >= 0:
            self._keep_first(keep_exact)
            return
        if cache is None:
            raise InvalidInput("a sequence with pages is shortened with the cache that has them")
        whole, part = divmod(tokens, BLOCK_TOKENS)
        gone = self.pages[whole:]
        self._hold(self.pages[:whole])
        self._keep_first(0)
        if part:
            keys, values = cache.unpack(gone[0])
            for layer, residual in enumerate(self._residual):
                residual.append(keys[layer, :, :part], values[layer, :, :part])
            self.restored_tokens = tokens
        for page in gone:
            cache.release(page)

    def fork(self, cache: PagedCache | None) -> "SequenceCache":
        """A second sequence with the same tokens; pages are shared, the residual is copied."""
        twin = SequenceCache(self.shape, recent_window=self.recent_window)
        if cache is not None:
            for page in self.pages:
                cache.hold(page)
        twin._hold(list(self.pages))
        twin.restored_tokens = self.restored_tokens
        twin._unpackable = self._unpackable
        twin._residual = [residual.fork() for residual in self._residual]
        return twin

    def release(self, cache: PagedCache | None) -> None:
        """Gives every page back and forgets every token."""
        if cache is not None:
            for page in self.pages:
                cache.release(page)
        self._hold([])
        self._keep_first(0)

    def _hold(self, pages: list[Page]) -> None:
        self.pages, self._table = pages, None

    def _oldest(self, layer: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        held = self._residual[layer].tokens
        if held < tokens:
            raise InvalidInput(f"layer {layer} holds {held} tokens, not the {tokens} to pack")
        return self._residual[layer].first(tokens)

    def _keep_first(self, tokens: int) -> None:
        for residual in self._residual:
            residual.keep_first(tokens)
