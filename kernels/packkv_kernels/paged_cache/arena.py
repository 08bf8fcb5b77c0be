"""Arena: where the words of pages lie, and the tables that say where. HostArena: in host memory."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.attention import PackedLayer
from packkv_kernels.compress import LayerPlan, cpu, encode_planned
from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.format import PayloadHeader, ResidentSections, read_payload, resident_sections
from packkv_kernels.format.payload import write_payload
from packkv_kernels.format.tile import DESCRIPTOR_WORDS, WORDS

if TYPE_CHECKING:
    from packkv_kernels.attention.triton import DeviceLayer

__all__ = ["Arena", "HostArena", "Incoming", "Place", "Tensors"]

_FIRST_SLOTS = 64

# Per layer K and V [heads, tokens, head_dim].
Tensors = Sequence[tuple[torch.Tensor, torch.Tensor]]


class Place(NamedTuple):
    """A page's row in the tables, and its run of the arena in u32 words."""

    slot: int
    start: int
    words: int


class Incoming(NamedTuple):
    """A block that was packed here: what it takes, and how it gets to its place."""

    words: int
    put: Callable[[Place], None]


class Arena(Protocol):
    """The memory of a paged cache; which of it is free is the cache's business."""

    @property
    def words(self) -> int:
        """Capacity in u32 words."""
        ...

    @property
    def slots(self) -> int:
        """Rows of the tables."""
        ...

    @property
    def grows(self) -> bool:
        """Whether `grow` makes more slots."""
        ...

    def grow(self) -> None:
        """More slots.

        Raises:
            CacheFull: the tables keep their size.
        """
        ...

    def put(
        self, blocks: Sequence[tuple[Place, ResidentSections]], layers: range | None = None
    ) -> None:
        """Copies proven sections of some layers, None: of all, to their places: of a page that is
        filled in parts, a place is where the part goes."""
        ...

    def encode(
        self, layers: Tensors, headers: Callable[[int], PayloadHeader], first_token: int
    ) -> Iterator[Incoming]:
        """Packs whole blocks, in order; `headers` makes a block's header from its position.

        Raises:
            InvalidInput: K or V that no codec may touch.
        """
        ...

    def give_up(self, place: Place) -> None:
        """A place is free; what is launched already may still read it."""
        ...

    def layer(self, layer: int) -> "PackedLayer | DeviceLayer":
        """All pages of one layer, as attention reads them."""
        ...

    def lengths(self, slot: int) -> NDArray[np.int32]:
        """Words of the sections of a page, int32 [layers, heads]."""
        ...

    def sections(self, place: Place) -> ResidentSections:
        """A page's sections in host memory."""
        ...

    def unpack(self, place: Place) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [layers, heads, 64, head_dim] of a page, float32."""
        ...


class HostArena:
    """Pages in host memory, for the backends that run there."""

    grows = True

    def __init__(self, plans: Sequence[LayerPlan], capacity_bytes: int) -> None:
        self._plans = plans
        self.data = np.zeros(capacity_bytes // 4, np.uint32)
        self._bases = np.zeros((len(plans), _FIRST_SLOTS, plans[0].heads), np.int64)
        self._descriptors = np.zeros((*self._bases.shape, DESCRIPTOR_WORDS), np.int32)

    @property
    def words(self) -> int:
        return len(self.data)

    @property
    def slots(self) -> int:
        return int(self._bases.shape[1])

    def grow(self) -> None:
        self._bases = np.concatenate([self._bases, np.zeros_like(self._bases)], axis=1)
        self._descriptors = np.concatenate(
            [self._descriptors, np.zeros_like(self._descriptors)], axis=1
        )

    def put(
        self, blocks: Sequence[tuple[Place, ResidentSections]], layers: range | None = None
    ) -> None:
        chosen = layers or range(len(self._plans))
        here, by_layer = slice(chosen.start, chosen.stop), (len(chosen), self._plans[0].heads)
        for (slot, start, words), sections in blocks:
            self.data[start : start + words] = sections.words
            self._bases[here, slot] = sections.bases.reshape(by_layer) + start
            rows = sections.descriptors.reshape(*by_layer, DESCRIPTOR_WORDS)
            self._descriptors[here, slot] = rows

    def encode(
        self, layers: Tensors, headers: Callable[[int], PayloadHeader], first_token: int
    ) -> Iterator[Incoming]:
        for found in encoded_sections(layers, self._plans, headers, first_token):
            yield Incoming(len(found.words), partial(self._put_one, found))

    def _put_one(self, sections: ResidentSections, place: Place) -> None:
        self.put([(place, sections)])

    def give_up(self, place: Place) -> None:
        """Nothing reads host memory after the call that was given it."""

    def layer(self, layer: int) -> PackedLayer:
        return PackedLayer(
            self.data, self._bases[layer], self._descriptors[layer], self._plans[layer]
        )

    def lengths(self, slot: int) -> NDArray[np.int32]:
        return self._descriptors[:, slot, :, WORDS]

    def sections(self, place: Place) -> ResidentSections:
        slot, start, words = place
        return ResidentSections(
            self.data[start : start + words],
            self._bases[:, slot].reshape(-1) - start,
            self._descriptors[:, slot].reshape(-1, DESCRIPTOR_WORDS),
        )

    def unpack(self, place: Place) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = cpu.decode_layers(self.sections(place), self._plans, BLOCK_TOKENS)
        return keys.transpose(1, 2), values.transpose(1, 2)


def encoded_sections(
    layers: Tensors,
    plans: Sequence[LayerPlan],
    headers: Callable[[int], PayloadHeader],
    first_token: int,
) -> Iterator[ResidentSections]:
    """Packs whole blocks in host memory, and proves them as if they had come from elsewhere."""
    encoded = [
        encode_planned(
            keys.transpose(0, 1),
            values.transpose(0, 1),
            plans[layer],
            layer=layer,
            first_token=first_token,
        )
        for layer, (keys, values) in enumerate(layers)
    ]
    for block in range(len(encoded[0])):
        sections = [section for layer in encoded for section in layer[block]]
        header = headers(first_token + block * BLOCK_TOKENS)
        yield resident_sections(read_payload(write_payload(header, sections)))
