"""PackedKVCache: a transformers Cache whose past is packed pages."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import Cache, CacheLayerMixin

from packkv.integrations.hf.attention import TAG
from packkv.integrations.hf.fed_tokens import FedTokens
from packkv.integrations.hf.prefix import ArrivingPages
from packkv_kernels.attention import PageTables, attend
from packkv_kernels.config import CacheShape
from packkv_kernels.paged_cache import ExactTokens, PagedCache, SequenceCache

__all__ = ["PackedKVCache", "left_padding"]

# Pages that tables on a device have room for at first.
_FIRST_PAGES = 64

Observer = Callable[[int, torch.Tensor, torch.Tensor], None]


class PackedKVCache(Cache):  # type: ignore[misc]
    """The past of a batch: per row packed pages, then exact tokens. Made by `PackKV.new_cache`.

    Rows may be left-padded. Padding takes no space: a row's first real token is its position 0, so
    that blocks line up with those of any other request, whatever it was batched with.

    Attributes:
        matched_tokens: per row, the tokens that came from the store or from this worker's pages.
    """

    def __init__(
        self,
        shape: CacheShape,
        paged: Callable[[], PagedCache | None],
        *,
        recent_window: int = 0,
        observe: Observer | None = None,
        on_prefill: Callable[[int, float], None] | None = None,
        cache_salt: str = "",
    ) -> None:
        """
        Args:
            shape: what the model computes per token.
            paged: answers with the worker's page memory, or None while no profile is known yet.
            recent_window: newest tokens of a row that stay exact although a block is full.
            observe: called with (layer, query, key) of every first prefill, for calibration.
            on_prefill: called with (tokens, seconds) of every pass over several tokens.
            cache_salt: only caches with the same one share blocks.
        """
        super().__init__(layers=[PackedLayer(self, layer) for layer in range(shape.layers)])
        self.shape = shape
        self.cache_salt = cache_salt
        self.rows: list[SequenceCache] = []
        self.padding: list[int] = []
        self.matched_tokens: list[int] = []
        self.length = 0
        self._tokens: list[FedTokens] | None = []
        self._fed: torch.Tensor | None = None
        self._untouched = True
        self._tables: Sequence[NDArray[np.int32]] = []
        self._paged = paged
        self._recent_window = recent_window
        self._observe = observe
        self._on_prefill = on_prefill
        self._began = 0.0
        self._arriving: ArrivingPages | None = None
        self._waited_s = 0.0

    def start(
        self, rows: list[SequenceCache], padding: list[int], length: int, prefixes: list[list[int]]
    ) -> None:
        """Begins with rows that already hold their prefix.

        Args:
            rows: one per sequence of the batch.
            padding: left padding of each row.
            length: columns that are in the cache, padding included; the same for every row.
            prefixes: the token ids of what each row holds.
        """
        self.rows, self.padding, self.length = rows, padding, length
        self._untouched = True
        self._tokens = [FedTokens(tokens) for tokens in prefixes]
        self.matched_tokens = [row.tokens() for row in rows]

    def expect(self, arriving: ArrivingPages) -> None:
        """The last pages of the one row are still to be filled: each layer waits for its part.

        From here until they are whole a forward pass may raise PrefixLost; the cache can then only
        be released.
        """
        self._arriving = arriving

    @property
    def is_arriving(self) -> bool:
        """Whether layers of pages are missing that this cache counts among its own."""
        return self._arriving is not None

    @property
    def token_ids(self) -> list[list[int]] | None:
        """Per row the token ids behind its K and V; None once a pass ran without token ids.

        Reads from the device what was fed since, so the host waits for it.
        """
        return None if self._tokens is None else [tokens.ids() for tokens in self._tokens]

    def feed(self, input_ids: torch.Tensor | None) -> None:
        """Notes the token ids [batch, new] of the forward pass that begins, None if it has none."""
        # a copy on the device, because it is read later: whoever fed them may use their memory anew
        self._fed = None if input_ids is None else input_ids.detach().clone()
        self._began, self._waited_s = time.monotonic(), 0.0

    def new_row(self) -> SequenceCache:
        """An empty row with this cache's settings."""
        return SequenceCache(self.shape, recent_window=self._recent_window)

    def begin_step(self, batch: int, new: int, padding_mask: torch.Tensor | None) -> None:
        """Called by the first layer of a forward pass: checks who takes part, notes the padding."""
        if not self.rows:
            rows = [self.new_row() for _ in range(batch)]
            self.start(rows, [0] * batch, 0, [[] for _ in rows])
        if self._untouched and batch % len(self.rows) == 0:
            # beam search and several returned sequences repeat every prompt
            self.batch_repeat_interleave(batch // len(self.rows))
        self._untouched = False
        if len(self.rows) != batch:
            raise ValueError(f"this cache holds {len(self.rows)} rows; the model ran {batch}")
        if padding_mask is None and any(self.padding):
            raise ValueError("this batch is left-padded: pass its attention_mask every time")
        if padding_mask is not None:
            self.padding = left_padding(padding_mask, self.length + new)
            for row, padding in zip(self.rows, self.padding, strict=True):
                if row.tokens() != max(0, self.length - padding):
                    raise ValueError(
                        f"a row has {padding} padding tokens, but its cache was started for "
                        f"{self.length - row.tokens()}: pass the same left padding every time"
                    )

        self._note_tokens(batch, new)
        # pages come and go between steps only, so all layers share the tables
        self._tables = self._where_read([row.page_table() for row in self.rows])

    def _where_read(self, tables: list[NDArray[np.int32]]) -> Sequence[NDArray[np.int32]]:
        """Page tables where attention reads them: those of a device are written in place."""
        paged = self._paged()
        if paged is None or not paged.is_on_device:
            return tables
        longest, held = max(len(table) for table in tables), self._tables
        fits = isinstance(held, PageTables) and len(held) == len(tables)
        if not isinstance(held, PageTables) or not fits or longest > held.table.shape[1]:
            # room to double in, so that tables are seldom taken anew
            held = paged.page_tables(len(tables), max(_FIRST_PAGES, 2 * longest))
        held.update(tables)
        return held

    def _note_tokens(self, batch: int, new: int) -> None:
        fed, self._fed = self._fed, None
        if fed is None or self._tokens is None or tuple(fed.shape) != (batch, new):
            self._tokens = None
            return
        for tokens, ids, skip in zip(self._tokens, fed, self._skipped(new), strict=True):
            tokens.add(ids[skip:])

    def _skipped(self, new: int) -> list[int]:
        """Per row, how many of the `new` columns are padding; these come first."""
        return [min(new, max(0, padding - self.length)) for padding in self.padding]

    def end_step(self, new: int) -> None:
        """Called by the last layer of a forward pass: packs what is old enough."""
        if self._on_prefill is not None and new > 1:
            # waiting for layers is no computing
            seconds = time.monotonic() - self._began - self._waited_s
            self._on_prefill(len(self.rows) * new, seconds)
        self.length += new
        paged = self._paged()
        if paged is not None:
            for row in self.rows:
                row.pack(paged)

    def attend_rows(
        self,
        layer: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Attention of one layer, row by row: [batch, new, q_heads, head_dim].

        Raises:
            PrefixLost: see `expect`.
        """
        self._settle(layer)
        batch, q_heads, new, head_dim = query.shape
        skipped = self._skipped(new)
        active = [row for row in range(batch) if skipped[row] < new]
        queries: list[torch.Tensor] = []
        exact: list[ExactTokens] = []
        for row in active:
            fresh = slice(skipped[row], new)
            queries.append(query[row, :, fresh])
            own = (keys[row, :, fresh], values[row, :, fresh])
            exact.append(self.rows[row].append(layer, *own))
            if self._observe is not None and self.rows[row].tokens(layer) == new - skipped[row]:
                self._observe(layer, query[row, :, fresh], own[0])
        paged = self._paged()
        found = attend(
            queries,
            None if paged is None else paged.layer(layer),
            self._tables if len(active) == batch else [self._tables[row] for row in active],
            [own.keys for own in exact],
            [own.values for own in exact],
            exact=[own.tokens for own in exact],
            scaling=scaling,
            window=window,
        )
        if batch == 1 and skipped[0] == 0:
            return found[0].transpose(0, 1)[None].contiguous()
        out = query.new_zeros(batch, new, q_heads, head_dim)
        for row, state in zip(active, found, strict=True):
            out[row, skipped[row] :] = state.transpose(0, 1)
        return out

    def release(self) -> None:
        """Gives the pages back. The cache is empty afterwards and can be used again."""
        if self._arriving is not None:
            self._arriving.abandon()
            self._arriving = None
        for row in self.rows:
            row.release(self._paged())
        self.rows, self.padding, self.matched_tokens, self.length = [], [], [], 0
        self._tokens, self._fed, self._tables = [], None, []

    def reset(self) -> None:
        self.release()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._select(beam_idx.tolist())

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._select(torch.arange(len(self.rows))[indices.cpu()].tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select([row for row in range(len(self.rows)) for _ in range(repeats)])

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the newest columns. What was packed comes back as it was packed, not exactly."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number of tokens, not {tokens_to_remove}")
        self._settle(self.shape.layers - 1)
        paged = self._paged()
        for row, padding in zip(self.rows, self.padding, strict=True):
            row.shorten(paged, max(0, self.length + tokens_to_remove - padding))
        self.length += tokens_to_remove
        if self._tokens is not None:
            for tokens, row in zip(self._tokens, self.rows, strict=True):
                tokens.keep_first(row.tokens())

    def _settle(self, layer: int) -> None:
        """Waits for a layer of the pages that are arriving, if there are any."""
        if self._arriving is None:
            return
        self._waited_s += self._arriving.fill(layer)
        if self._arriving.are_whole:
            self._arriving = None

    def _select(self, rows: Iterable[int]) -> None:
        chosen = list(rows)
        paged = self._paged()
        forks = [self.rows[row].fork(paged) for row in chosen]
        for row in self.rows:
            row.release(paged)
        self.rows = forks
        self.padding = [self.padding[row] for row in chosen]
        self.matched_tokens = [self.matched_tokens[row] for row in chosen]
        if self._tokens is not None:
            self._tokens = [self._tokens[row].fork() for row in chosen]


class PackedLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a `PackedKVCache`; transformers sees it, the rows do the work."""

    is_compileable = False
    is_croppable = False  # packing loses bits, so a rollback would leave a trace
    supports_early_init = False

    def __init__(self, cache: PackedKVCache, layer: int) -> None:
        super().__init__()
        self._cache = cache
        self._layer = layer
        self._pending = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hands the new K and V on, with this layer attached for the attention to find."""
        if self._pending:
            raise RuntimeError(
                "this model runs another attention than 'packkv', which cannot see packed pages: "
                "make the cache with PackKV.new_cache and leave the attention implementation alone"
            )
        self._pending = True
        self.is_initialized = True
        setattr(key_states, TAG, self)
        return key_states, value_states

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        padding_mask: torch.Tensor | None,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        self._pending = False
        batch, _, new, _ = query.shape
        if self._layer == 0:
            self._cache.begin_step(batch, new, padding_mask)
        out = self._cache.attend_rows(self._layer, query, keys, values, scaling, window)
        if self._layer == self._cache.shape.layers - 1:
            self._cache.end_step(new)
        return out

    def reset(self) -> None:
        """After a pass that ended early: the next begins anew."""
        self._pending = False

    def get_seq_length(self) -> int:
        return self._cache.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.length + query_length, 0

    def get_max_length(self) -> int:
        return -1


def left_padding(padding_mask: torch.Tensor, columns: int) -> list[int]:
    """Padding tokens before each row's first real token.

    Raises:
        ValueError: the mask has another length, or zeros after a real token.
    """
    mask = padding_mask.cpu().numpy().astype(bool)
    if mask.shape[1] != columns:
        raise ValueError(f"the attention mask has {mask.shape[1]} columns, not {columns}")
    padding = np.where(mask.any(1), mask.argmax(1), columns)
    if (mask.sum(1) + padding != columns).any():
        raise ValueError("the attention mask has zeros after a real token: pad on the left")
    return [int(count) for count in padding]
