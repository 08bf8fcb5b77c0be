"""The pages of a prompt's prefix: those that are here, those that the store has, and those that
are still on their way from it."""

from __future__ import annotations

import logging
import time

from packkv.prefix_cache import ArrivingPrefix, PrefixCache
from packkv_kernels.errors import CacheFull, PayloadError
from packkv_kernels.paged_cache import Page, PagedCache

__all__ = ["ArrivingPages", "FoundPrefix"]

log = logging.getLogger("packkv")


class FoundPrefix:
    """The longest known prefix of a prompt; the caller holds its pages.

    Attributes:
        pages: in order, those that are arriving at the end.
        arriving: the layers of these, or None.
    """

    def __init__(self, paged: PagedCache, chain_hashes: list[bytes]) -> None:
        """
        Args:
            paged: the worker's page memory, which is looked at.
            chain_hashes: names of the blocks of the prompt that may be used.
        """
        self._paged = paged
        self._wanted = len(chain_hashes)
        self.pages: list[Page] = []
        self.arriving: ArrivingPages | None = None
        for chain_hash in chain_hashes:
            page = paged.find(chain_hash)
            if page is None:
                break
            self.pages.append(page)

    def fetch(
        self, prefixes: PrefixCache, tokens: list[int], root_hash: bytes, *, layerwise: bool
    ) -> None:
        """Adds what the store has and is worth fetching."""
        if len(self.pages) == self._wanted:
            return
        loaded = prefixes.load(
            tokens, held_blocks=len(self.pages), root_hash=root_hash, layerwise=layerwise
        )
        adopted, refusal = self._paged.adopt_all(loaded.payloads)
        self.pages += adopted
        # what is adopted so far is sound; the rest is computed
        if isinstance(refusal, PayloadError):
            prefixes.count_refused(refusal)
        elif refusal is not None:
            log.warning("prefix cut at %d blocks: %s", len(self.pages), refusal)
        if loaded.arriving is None:
            return
        if refusal is not None:
            loaded.arriving.abandon()
            return
        arriving = ArrivingPages(loaded.arriving, self._paged)
        if arriving.pages:
            self.pages += arriving.pages
            self.arriving = arriving


class ArrivingPages:
    """Pages whose layers are on their way, filled when the model gets to them.

    Attributes:
        pages: reserved, and held by whoever made this; fewer than arrive when room runs out.
    """

    def __init__(self, prefix: ArrivingPrefix, paged: PagedCache) -> None:
        self._prefix = prefix
        self._paged = paged
        self._filled = 0
        self.pages: list[Page] = []
        try:
            for header, words in prefix.sizes:
                self.pages.append(paged.reserve(header, words))
        except CacheFull as error:
            log.warning("prefix cut at %d arriving blocks: %s", len(self.pages), error)
        if not self.pages:
            prefix.abandon()

    @property
    def are_whole(self) -> bool:
        """Whether every layer is in its place."""
        return self._filled == self._paged.shape.layers

    def fill(self, layer: int) -> float:
        """Waits until a layer is in its place; the seconds that took.

        Raises:
            PrefixLost: the layers will not all come, or not in time. From then on always.
        """
        if layer < self._filled:
            return 0.0
        began = time.monotonic()
        for part in self._prefix.take(layer):
            self._paged.fill(self.pages, part.layers, part.blocks[: len(self.pages)])
            self._filled = part.layers.stop
        if self.are_whole:
            self._paged.finish(self.pages)
        return time.monotonic() - began

    def abandon(self) -> None:
        """The rest is not wanted: ends the fetch, if it is still running."""
        self._prefix.abandon()
