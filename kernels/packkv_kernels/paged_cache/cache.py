"""PagedCache: the packed blocks of a worker, in one arena of fixed size, on host or device."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.attention import PackedLayer, PageTables
from packkv_kernels.backend import choose_backend
from packkv_kernels.compress import LayerPlan, plan_layers
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig, CodecId
from packkv_kernels.errors import CacheFull, InvalidInput, PayloadError
from packkv_kernels.format import (
    KVDtype,
    Payload,
    PayloadHeader,
    ResidentSections,
    resident_sections,
    write_payload,
)
from packkv_kernels.format.raw import compress_values
from packkv_kernels.format.tile import WORDS
from packkv_kernels.paged_cache.arena import Arena, HostArena, Place, Tensors
from packkv_kernels.paged_cache.extents import Extents
from packkv_kernels.profile import Profile

if TYPE_CHECKING:
    from packkv_kernels.attention.triton import DeviceLayer

_NO_HASH = bytes(32)

# Tables of a device have room for pages down to this size; of larger ones the bytes run out first.
_LEAST_BITS_PER_VALUE = 1.5


@dataclass(eq=False)
class Page:
    """One block in the arena, shared by all sequences that hold it.

    Attributes:
        place: its run of the arena, and its row in the cache's tables: the slot, which page tables
            name.
        header: of the payload it came from or becomes; the hashes are zero until it has a name.
        holders: how many sequences hold it. A named page without holders stays until its space
            is needed, for the next request with the same prefix.
    """

    place: Place
    header: PayloadHeader
    holders: int = 1

    @property
    def slot(self) -> int:
        return self.place.slot

    @property
    def chain_hash(self) -> bytes | None:
        """The block's name, or None for a page that was packed here and not named yet."""
        return None if self.header.chain_hash == _NO_HASH else self.header.chain_hash


class Adopted(NamedTuple):
    """The pages of a prefix, held by the caller, and what ended it if it was cut."""

    pages: list[Page]
    refusal: PayloadError | CacheFull | None


class PagedCache:
    """Packed blocks in one arena: adopted from the store or packed here, shared by prefix.

    The arena is where attention reads it: in the device's memory for the backend `triton`, else in
    the host's.

    The capacity is a hard bound: what does not fit raises `CacheFull`, after pages that nobody
    holds have been given up, least recently used first. Not for use by several threads at once.
    """

    def __init__(
        self,
        shape: CacheShape,
        config: CodecConfig,
        profile: Profile | None,
        *,
        capacity_bytes: int,
        kv_dtype: KVDtype,
        first_head: int = 0,
        device: torch.device | None = None,
        backend: str | None = None,
        max_pages: int | None = None,
    ) -> None:
        """
        Args:
            shape: layers, KV heads and head_dim of the pages.
            config: the codec of the pages.
            profile: of the whole model; None for codecs that need none.
            capacity_bytes: size of the arena.
            kv_dtype: what the model computes.
            first_head: the first KV head of this rank.
            device: where the model computes; None for the CPU.
            backend: a name from `available_backends`; None takes the best for the device.
            max_pages: that a device's tables have room for, 168 bytes a section each; None for as
                many as fit the arena at 1.5 bits per value. The host's tables grow.

        Raises:
            InvalidInput: a codec without its profile, or a backend that is not here.
            ProfileError: a profile of another shape.
        """
        self.shape, self.config, self.kv_dtype = shape, config, kv_dtype
        self.first_head = first_head
        self._plans: Sequence[LayerPlan] = plan_layers(config, profile, shape, first_head)
        self._profile_digest = (
            profile.digest if profile is not None and config.needs_profile else bytes(32)
        )
        self.device = device or torch.device("cpu")
        self._arena = self._new_arena(capacity_bytes, backend, max_pages)
        self._extents = Extents(self._arena.words)
        self._free_slots = list(range(self._arena.slots - 1, -1, -1))
        self._named: dict[bytes, Page] = {}
        self._idle: OrderedDict[bytes, Page] = OrderedDict()

    @property
    def is_on_device(self) -> bool:
        """Whether pages lie where Triton's kernels read them, rather than in host memory."""
        return not isinstance(self._arena, HostArena)

    @property
    def capacity_bytes(self) -> int:
        return 4 * self._arena.words

    @property
    def used_bytes(self) -> int:
        """Bytes of the arena that pages take, held or not."""
        return 4 * self._extents.used

    def layer(self, layer: int) -> "PackedLayer | DeviceLayer":
        """All pages of one layer, as attention reads them.

        On a device, what is launched afterwards starts when the pages of that layer have arrived;
        who replays a captured graph instead of launching asks for its layers before each replay.
        """
        return self._arena.layer(layer)

    def page_tables(self, batch: int, max_pages: int) -> PageTables:
        """Empty tables for so many sequences of at most so many pages, on the model's device."""
        return PageTables(batch, max_pages, self.device)

    def find(self, chain_hash: bytes) -> Page | None:
        """The page of that name, now held by the caller too; None when it is not here."""
        page = self._named.get(chain_hash)
        if page is not None:
            self.hold(page)
        return page

    def hold(self, page: Page) -> None:
        """One more holder."""
        page.holders += 1
        if page.chain_hash is not None:
            self._idle.pop(page.chain_hash, None)

    def release(self, page: Page) -> None:
        """One holder fewer; without a name and without holders a page is gone."""
        page.holders -= 1
        if page.holders:
            return
        chain_hash = page.chain_hash
        if chain_hash is not None and self._named.get(chain_hash) is page:
            self._idle[chain_hash] = page
        else:
            self._free(page)

    def adopt(self, payload: Payload) -> Page:
        """Proves a payload's sections and takes them in; the caller holds the page.

        Raises:
            PayloadError: the sections are not sound.
            InvalidInput: a payload of another shape or codec, or not a full block.
            CacheFull: no room, and every page is held.
        """
        pages, refusal = self.adopt_all([payload])
        if refusal is not None:
            raise refusal
        return pages[0]

    def adopt_all(self, payloads: Sequence[Payload]) -> Adopted:
        """Takes in the payloads of a prefix, in order, up to the first that must be refused.

        Copies to a device go layer by layer over all of them, so that attention of the first layer
        may start before the last has arrived.

        Raises:
            InvalidInput: a payload of another shape or codec, or not a full block.
        """
        for payload in payloads:
            self._check_fit(payload.header)
        pages: list[Page] = []
        blocks: list[tuple[Place, ResidentSections]] = []
        refusal: PayloadError | CacheFull | None = None
        for payload in payloads:
            name = payload.header.chain_hash
            if name != _NO_HASH and (known := self.find(name)) is not None:
                pages.append(known)
                continue
            try:
                sections = resident_sections(payload)
                place = self._take_place(len(sections.words))
            except (PayloadError, CacheFull) as error:
                refusal = error
                break
            blocks.append((place, sections))
            pages.append(self._new_page(place, payload.header))
        if blocks:
            self._arena.put(blocks)
        return Adopted(pages, refusal)

    def reserve(self, header: PayloadHeader, words: int) -> Page:
        """Room for a block that arrives layer by layer; the caller holds the page.

        Of the resident payload it takes the header, and `resident_words` of it. No layer may be
        read before `fill` has been given it, and nobody finds the page before `finish`.

        Raises:
            InvalidInput: a payload of another shape or codec, or not a full block.
            CacheFull: no room, and every page is held.
        """
        self._check_fit(header)
        return Page(self._take_place(words), header)

    def fill(
        self, pages: Sequence[Page], layers: range, sections: Sequence[ResidentSections]
    ) -> None:
        """The next layers of reserved pages: their proven `sections`, in the order of the pages.

        Raises:
            InvalidInput: more than there is room for.
        """
        blocks = []
        for page, found in zip(pages, sections, strict=True):
            slot, start, words = page.place
            at = int(self._arena.lengths(slot)[: layers.start].sum())
            if at + len(found.words) > words:
                raise InvalidInput(f"{at} + {len(found.words)} words, room for {words}")
            blocks.append((Place(slot, start + at, len(found.words)), found))
        self._arena.put(blocks, layers)

    def finish(self, pages: Sequence[Page]) -> None:
        """All layers of these reserved pages are filled: whoever wants them finds them."""
        for page in pages:
            self._named.setdefault(page.header.chain_hash, page)

    def forget(self) -> int:
        """Gives up every page that nobody holds; how many."""
        count = len(self._idle)
        while self._idle:
            self._free_oldest()
        return count

    def encode(self, layers: Tensors, *, first_token: int) -> Iterator[Page]:
        """Packs K and V into pages, in order; the caller holds each as it comes.

        Args:
            layers: per layer K and V [heads, n · 64, head_dim], post-RoPE.
            first_token: position of the first token in its sequence.

        Raises:
            InvalidInput: NaN or infinity, or a shape that does not fit.
            CacheFull: no room for the next page; those before it stay.
        """
        incoming = self._arena.encode(layers, self._header, first_token)
        for block, (words, put) in enumerate(incoming):
            place = self._take_place(words)
            put(place)
            yield self._new_page(place, self._header(first_token + block * BLOCK_TOKENS))

    def name(
        self, page: Page, *, root_hash: bytes, chain_hash: bytes, compute_ms: float = 0.0
    ) -> None:
        """Gives a page that was packed here its name, so that others can find it, and says what it
        took to compute (0: not known)."""
        page.header = replace(
            page.header, root_hash=root_hash, chain_hash=chain_hash, compute_ms=compute_ms
        )
        self._named.setdefault(chain_hash, page)

    def payload(self, page: Page) -> bytearray:
        """The page as it is stored and sent."""
        return write_payload(page.header, self._sections(page))

    def section_bytes(self, page: Page) -> NDArray[np.int64]:
        """Bytes of a page's sections, int64 [layers, heads]."""
        return 4 * self._arena.lengths(page.slot).astype(np.int64)

    def unpack(self, page: Page) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [layers, heads, 64, head_dim] of a page, as the model has them."""
        keys, values = self._arena.unpack(page.place)
        dtype = _TORCH_DTYPES[self.kv_dtype]
        return keys.to(self.device, dtype), values.to(self.device, dtype)

    def _new_arena(self, capacity_bytes: int, backend: str | None, max_pages: int | None) -> Arena:
        if choose_backend(backend, self.device) != "triton":
            return HostArena(self._plans, capacity_bytes)
        # machines without a GPU never load it
        from packkv_kernels.paged_cache.device import DeviceArena

        raw = self.config.codec_id is CodecId.RAW
        bits = 8 * self.kv_dtype.itemsize if raw else _LEAST_BITS_PER_VALUE
        values = 2 * BLOCK_TOKENS * self.shape.layers * self.shape.heads * self.shape.head_dim
        slots = max_pages or max(1, int(8 * capacity_bytes / (bits * values)))
        return DeviceArena(self._plans, capacity_bytes, self.device, slots=slots)

    def _sections(self, page: Page) -> list[bytes]:
        found = self._arena.sections(page.place)
        bases, lengths = found.bases.tolist(), found.descriptors[:, WORDS].tolist()
        runs = [
            found.words[base : base + length].tobytes()
            for base, length in zip(bases, lengths, strict=True)
        ]
        if self.config.codec_id is not CodecId.RAW:
            return runs
        itemsize = self.kv_dtype.itemsize
        length = 2 * page.header.tokens * self.shape.head_dim * itemsize
        return [compress_values(run[:length], itemsize) for run in runs]

    def _header(self, first_token: int) -> PayloadHeader:
        return PayloadHeader(
            codec=self.config.codec_id,
            kv_dtype=self.kv_dtype,
            tokens=BLOCK_TOKENS,
            sinks=self.config.block_sinks(first_token, BLOCK_TOKENS),
            layers=self.shape.layers,
            first_head=self.first_head,
            heads=self.shape.heads,
            head_dim=self.shape.head_dim,
            root_hash=_NO_HASH,
            chain_hash=_NO_HASH,
            codec_digest=self.config.digest,
            profile_digest=self._profile_digest,
            first_token=first_token,
        )

    def _check_fit(self, header: PayloadHeader) -> None:
        wanted = (self.shape, self.config.codec_id, self.kv_dtype, BLOCK_TOKENS)
        found = (header.shape, header.codec, header.kv_dtype, header.tokens)
        if wanted != found:
            raise InvalidInput(f"a payload of {found} does not fit a cache of {wanted}")

    def _take_place(self, words: int) -> Place:
        """Room for a page, from pages that nobody holds if need be."""
        while (start := self._extents.take(words)) is None:
            if not self._idle:
                raise CacheFull(
                    f"no room for a page of {4 * words} bytes: {self.used_bytes} of "
                    f"{self.capacity_bytes} are in pages that sequences hold"
                )
            self._free_oldest()
        try:
            return Place(self._take_slot(), start, words)
        except CacheFull:
            self._extents.give_back(start, words)
            raise

    def _take_slot(self) -> int:
        if not self._free_slots and self._idle and not self._arena.grows:
            self._free_oldest()
        if not self._free_slots:
            slots = self._arena.slots
            self._arena.grow()
            self._free_slots = list(range(self._arena.slots - 1, slots - 1, -1))
        return self._free_slots.pop()

    def _new_page(self, place: Place, header: PayloadHeader) -> Page:
        page = Page(place, header)
        if page.chain_hash is not None:
            self._named[page.chain_hash] = page
        return page

    def _free_oldest(self) -> None:
        # dictionaries keep order: the page that has been idle longest goes first
        _, page = self._idle.popitem(last=False)
        self._free(page)

    def _free(self, page: Page) -> None:
        self._arena.give_up(page.place)
        self._extents.give_back(page.place.start, page.place.words)
        self._free_slots.append(page.slot)
        chain_hash = page.chain_hash
        if chain_hash is not None and self._named.get(chain_hash) is page:
            del self._named[chain_hash]


_TORCH_DTYPES = {
    KVDtype.FLOAT16: torch.float16,
    KVDtype.BFLOAT16: torch.bfloat16,
    KVDtype.FLOAT32: torch.float32,
}
