"""PagedCache: the packed blocks of a worker, in one arena of fixed size."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.attention import PackedLayer
from packkv_kernels.compress import cpu, encode_planned, plan_layers
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig, CodecId
from packkv_kernels.errors import CacheFull, InvalidInput
from packkv_kernels.format import (
    KVDtype,
    Payload,
    PayloadHeader,
    ResidentSections,
    read_payload,
    resident_sections,
    write_payload,
)
from packkv_kernels.format.raw import compress_values
from packkv_kernels.format.tile import DESCRIPTOR_WORDS, WORDS
from packkv_kernels.paged_cache.extents import Extents
from packkv_kernels.profile import Profile

_NO_HASH = bytes(32)
_FIRST_SLOTS = 64


@dataclass(eq=False)
class Page:
    """One block in the arena, shared by all sequences that hold it.

    Attributes:
        slot: its row in the cache's tables, which page tables name.
        start, words: its run of the arena, in u32 words.
        header: of the payload it came from or becomes; the hashes are zero until it has a name.
        holders: how many sequences hold it. A named page without holders stays until its space
            is needed, for the next request with the same prefix.
    """

    slot: int
    start: int
    words: int
    header: PayloadHeader
    holders: int = 1

    @property
    def chain_hash(self) -> bytes | None:
        """The block's name, or None for a page that was packed here and not named yet."""
        return None if self.header.chain_hash == _NO_HASH else self.header.chain_hash


class PagedCache:
    """Packed blocks in one arena: adopted from the store or packed here, shared by prefix.

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
    ) -> None:
        """
        Args:
            shape: layers, KV heads and head_dim of the pages.
            config: the codec of the pages.
            profile: of the whole model; None for codecs that need none.
            capacity_bytes: size of the arena.
            kv_dtype: what the model computes.
            first_head: the first KV head of this rank.

        Raises:
            InvalidInput: a codec without its profile.
            ProfileError: a profile of another shape.
        """
        self.shape, self.config, self.kv_dtype = shape, config, kv_dtype
        self.first_head = first_head
        self._plans = plan_layers(config, profile, shape, first_head)
        self._profile_digest = (
            profile.digest if profile is not None and config.needs_profile else bytes(32)
        )
        self._words = np.zeros(capacity_bytes // 4, np.uint32)
        self._extents = Extents(len(self._words))
        self._bases = np.zeros((shape.layers, _FIRST_SLOTS, shape.heads), np.int64)
        self._descriptors = np.zeros((*self._bases.shape, DESCRIPTOR_WORDS), np.int32)
        self._free_slots = list(range(_FIRST_SLOTS - 1, -1, -1))
        self._named: dict[bytes, Page] = {}
        self._idle: OrderedDict[bytes, Page] = OrderedDict()

    @property
    def capacity_bytes(self) -> int:
        return 4 * len(self._words)

    @property
    def used_bytes(self) -> int:
        """Bytes of the arena that pages take, held or not."""
        return 4 * self._extents.used

    def layer(self, layer: int) -> PackedLayer:
        """All pages of one layer, as attention reads them."""
        return PackedLayer(
            self._words,
            self._bases[layer],
            self._descriptors[layer],
            self._plans[layer],
        )

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
        header = payload.header
        if header.chain_hash != _NO_HASH and (page := self.find(header.chain_hash)) is not None:
            return page
        self._check_fit(header)
        sections = resident_sections(payload)
        start = self._room_for(len(sections.words))
        slot = self._take_slot()
        self._words[start : start + len(sections.words)] = sections.words
        by_layer = (self.shape.layers, self.shape.heads)
        self._bases[:, slot] = sections.bases.reshape(by_layer) + start
        self._descriptors[:, slot] = sections.descriptors.reshape(*by_layer, DESCRIPTOR_WORDS)
        page = Page(slot, start, len(sections.words), header)
        if page.chain_hash is not None:
            self._named[page.chain_hash] = page
        return page

    def encode(
        self, layers: Sequence[tuple[torch.Tensor, torch.Tensor]], *, first_token: int
    ) -> Iterator[Page]:
        """Packs K and V into pages, in order; the caller holds each as it comes.

        Args:
            layers: per layer K and V [heads, n · 64, head_dim], post-RoPE.
            first_token: position of the first token in its sequence.

        Raises:
            InvalidInput: NaN or infinity, or a shape that does not fit.
            CacheFull: no room for the next page; those before it stay.
        """
        encoded = [
            encode_planned(
                keys.transpose(0, 1),
                values.transpose(0, 1),
                self._plans[layer],
                layer=layer,
                first_token=first_token,
            )
            for layer, (keys, values) in enumerate(layers)
        ]
        for block in range(len(encoded[0])):
            sections = [section for layer in encoded for section in layer[block]]
            header = self._header(first_token + block * BLOCK_TOKENS)
            yield self.adopt(read_payload(write_payload(header, sections)))

    def name(self, page: Page, *, root_hash: bytes, chain_hash: bytes) -> None:
        """Gives a page that was packed here its name, so that others can find it."""
        page.header = replace(page.header, root_hash=root_hash, chain_hash=chain_hash)
        self._named.setdefault(chain_hash, page)

    def payload(self, page: Page) -> bytearray:
        """The page as it is stored and sent."""
        return write_payload(page.header, self._sections(page))

    def section_bytes(self, page: Page) -> NDArray[np.int64]:
        """Bytes of a page's sections, int64 [layers, heads]."""
        return 4 * self._descriptors[:, page.slot, :, WORDS].astype(np.int64)

    def unpack(self, page: Page) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [layers, heads, 64, head_dim] of a page, in the model's dtype."""
        sections = ResidentSections(
            self._words,
            self._bases[:, page.slot].reshape(-1),
            self._descriptors[:, page.slot].reshape(-1, DESCRIPTOR_WORDS),
        )
        keys, values = cpu.decode_layers(sections, self._plans, BLOCK_TOKENS)
        dtype = _TORCH_DTYPES[self.kv_dtype]
        return keys.transpose(1, 2).to(dtype), values.transpose(1, 2).to(dtype)

    def _sections(self, page: Page) -> list[bytes]:
        bases = self._bases[:, page.slot].reshape(-1).tolist()
        lengths = self._descriptors[:, page.slot, :, WORDS].reshape(-1).tolist()
        runs = [
            self._words[base : base + length].tobytes()
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

    def _room_for(self, words: int) -> int:
        while (start := self._extents.take(words)) is None:
            if not self._idle:
                raise CacheFull(
                    f"no room for a page of {4 * words} bytes: {self.used_bytes} of "
                    f"{self.capacity_bytes} are in pages that sequences hold"
                )
            # dictionaries keep order: the page that has been idle longest goes first
            _, page = self._idle.popitem(last=False)
            self._free(page)
        return start

    def _free(self, page: Page) -> None:
        self._extents.give_back(page.start, page.words)
        self._free_slots.append(page.slot)
        chain_hash = page.chain_hash
        if chain_hash is not None and self._named.get(chain_hash) is page:
            del self._named[chain_hash]

    def _take_slot(self) -> int:
        if not self._free_slots:
            slots = self._bases.shape[1]
            self._bases = np.concatenate([self._bases, np.zeros_like(self._bases)], axis=1)
            self._descriptors = np.concatenate(
                [self._descriptors, np.zeros_like(self._descriptors)], axis=1
            )
            self._free_slots = list(range(2 * slots - 1, slots - 1, -1))
        return self._free_slots.pop()


_TORCH_DTYPES = {
    KVDtype.FLOAT16: torch.float16,
    KVDtype.BFLOAT16: torch.bfloat16,
    KVDtype.FLOAT32: torch.float32,
}
