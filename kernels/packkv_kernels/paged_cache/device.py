"""DeviceArena: pages in the memory of a GPU, where its kernels read them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.attention.triton.resident import (
    NARROW_UNITS,
    SLACK_WORDS,
    DeviceLayer,
    all_units,
    is_narrow,
    is_wide,
    layer_on_device,
)
from packkv_kernels.compress import LayerPlan, check_input
from packkv_kernels.compress.triton.blocks import Encoder
from packkv_kernels.compress.triton.operators import pack
from packkv_kernels.config import CodecId
from packkv_kernels.errors import CacheFull, InvalidInput
from packkv_kernels.format import PayloadHeader, ResidentSections
from packkv_kernels.format.directory import DIRECTORY_WORDS, directory_rows
from packkv_kernels.format.tile import DESCRIPTOR_WORDS, WORDS
from packkv_kernels.paged_cache.arena import Incoming, Place, Tensors, encoded_sections
from packkv_kernels.paged_cache.copies import Copies

__all__ = ["DeviceArena"]

# A directory counts 16 bytes in 31 bits.
_MOST_WORDS = 1 << 33

# Leading words of a section that hold its flags and all bitmaps of K that a directory has.
_HEAD_WORDS = 8


class DeviceArena:
    """Pages on a device: one run of bytes, and tables of fixed size that are written in place.

    So a captured CUDA graph goes on reading the right memory while pages come and go. The host
    keeps a copy of the tables and is never asked to wait, but by `encode` and `sections`.
    """

    grows = False

    # of inference mode, arena and tables could not be written outside of it
    @torch.inference_mode(False)
    def __init__(
        self,
        plans: Sequence[LayerPlan],
        capacity_bytes: int,
        device: torch.device,
        *,
        slots: int,
    ) -> None:
        """
        Args:
            plans: one per layer.
            capacity_bytes: for pages; the tables come on top, 168 bytes a section.
            device: where kernels run.
            slots: pages that the tables have room for.

        Raises:
            InvalidInput: more bytes than a directory can address.
        """
        self._device, self.words, self.slots = device, capacity_bytes // 4, slots
        if self.words > _MOST_WORDS:
            raise InvalidInput(
                f"{capacity_bytes} bytes are more than the {4 * _MOST_WORDS} that one arena has"
            )
        self._plans, self._heads = plans, plans[0].heads
        shape = (len(plans), slots, self._heads)
        self.data = torch.zeros(4 * (self.words + SLACK_WORDS), dtype=torch.uint8, device=device)
        self._words = self.data.view(torch.uint32)
        self._bases = torch.zeros(shape, dtype=torch.int64, device=device)
        self._descriptors = torch.zeros(*shape, DESCRIPTOR_WORDS, dtype=torch.int32, device=device)
        self._directory = torch.zeros(*shape, DIRECTORY_WORDS, dtype=torch.int32, device=device)
        # of layers whose K is wide, by layer: [slots, heads, DIRECTORY_WORDS]
        self._wide: dict[int, torch.Tensor] = {}
        self._narrow_sections = np.zeros(len(plans), np.int64)
        self._sections = np.zeros(len(plans), np.int64)
        self._layers = [
            layer_on_device(
                plan,
                *(self._words, self._bases[layer], self._descriptors[layer]),
                self._directory[layer],
                wide_units=NARROW_UNITS,
            )
            for layer, plan in enumerate(plans)
        ]
        self._encoder = Encoder(plans, device)
        self._host_bases = np.zeros(shape, np.int64)
        self._host_descriptors = np.zeros((*shape, DESCRIPTOR_WORDS), np.int32)
        self._copies = Copies(device, len(plans))
        self._copies.owns(self.data, self._bases, self._descriptors, self._directory)
        self._copies.follow()

    def grow(self) -> None:
        raise CacheFull(f"no room for another page: all {self.slots} that the tables have are held")

    def put(
        self, blocks: Sequence[tuple[Place, ResidentSections]], layers: range | None = None
    ) -> None:
        chosen = layers or range(len(self._plans))
        found = [(place, sections.words, *self._tables(sections)) for place, sections in blocks]
        self._put_tables(
            chosen,
            [place.slot for place, _ in blocks],
            [at + place.start for place, _, at, _ in found],
            [descriptors for _, _, _, descriptors in found],
            [
                self._directory_rows(words, at + place.start, descriptors, at)
                for place, words, at, descriptors in found
            ],
        )
        for index, layer in enumerate(chosen):
            # the first layer of all pages, then the second: attention may begin with the first
            for (_, start, _), words, at, descriptors in found:
                first, last = at[index, 0], at[index, -1] + descriptors[index, -1, WORDS]
                self._copies.send(words[first:last], self._words[start + first : start + last])
            self._copies.arrives(layer)

    def encode(
        self, layers: Tensors, headers: Callable[[int], PayloadHeader], first_token: int
    ) -> Iterator[Incoming]:
        config = self._plans[0].config
        if config.codec_id is CodecId.RAW:
            for found in encoded_sections(layers, self._plans, headers, first_token):
                yield Incoming(len(found.words), partial(self._put_one, found))
            return
        keys, values = (torch.stack([part[i] for part in layers]) for i in (0, 1))
        by_token = keys.transpose(1, 2).contiguous(), values.transpose(1, 2).contiguous()
        self._check(*by_token, first_token)
        encoded = _Encoded(*pack(*by_token, str(config), self._encoder.tables, first_token))
        for block in range(encoded.blocks):
            yield Incoming(encoded.words(block), partial(self._put_encoded, encoded, block))

    def give_up(self, place: Place) -> None:
        self._copies.follow()

    def layer(self, layer: int) -> DeviceLayer:
        self._copies.wait(layer)
        return self._layers[layer]

    def lengths(self, slot: int) -> NDArray[np.int32]:
        return self._host_descriptors[:, slot, :, WORDS]

    def sections(self, place: Place) -> ResidentSections:
        slot, start, words = place
        self._copies.wait_all()
        return ResidentSections(
            self._words[start : start + words].cpu().numpy(),
            self._host_bases[:, slot].reshape(-1) - start,
            self._host_descriptors[:, slot].reshape(-1, DESCRIPTOR_WORDS),
        )

    def unpack(self, place: Place) -> tuple[torch.Tensor, torch.Tensor]:
        pages = torch.tensor([place.slot], dtype=torch.int32, device=self._device)
        found = [self.layer(layer).unpack(pages) for layer in range(len(self._plans))]
        return torch.stack([keys for keys, _ in found]), torch.stack([v for _, v in found])

    def _check(self, keys: torch.Tensor, values: torch.Tensor, first_token: int) -> None:
        config = self._plans[0].config
        try:
            # of all layers at once, since the host waits for the answer
            check_input(keys.flatten(0, 1), values.flatten(0, 1), 0, config, first_token)
        except InvalidInput:
            for layer, (own_keys, own_values) in enumerate(zip(keys, values, strict=True)):
                check_input(own_keys, own_values, layer, config, first_token)
            raise

    def _put_one(self, sections: ResidentSections, place: Place) -> None:
        self.put([(place, sections)])

    def _put_encoded(self, encoded: "_Encoded", block: int, place: Place) -> None:
        # a place may still be the target of a copy that nobody waited for
        self._copies.wait_all()
        at = place.start
        bases = np.zeros((len(self._plans), self._heads), np.int64)
        for layer in range(len(self._plans)):
            first, last = encoded.starts[layer, block, 0], encoded.ends[layer, block, -1]
            self._words[at : at + last - first].copy_(encoded.data[first:last])
            bases[layer] = at + encoded.starts[layer, block] - first
            at += last - first
        descriptors, stored = encoded.descriptors[:, block], encoded.heads_at[:, block]
        rows = self._directory_rows(encoded.heads, bases, descriptors, stored)
        every = range(len(self._plans))
        self._put_tables(every, [place.slot], [bases], [descriptors], [rows])
        for layer in every:
            self._copies.arrives(layer)

    def _put_tables(
        self,
        layers: range,
        slots: Sequence[int],
        bases: Sequence[NDArray[np.int64]],
        descriptors: Sequence[NDArray[np.int32]],
        rows: Sequence[NDArray[np.int32]],
    ) -> None:
        """Writes rows of the tables of some layers: per page [layers, heads, …]."""
        here = slice(layers.start, layers.stop)
        all_bases, all_descriptors = np.stack(bases, 1), np.stack(descriptors, 1)
        self._host_bases[here, slots] = all_bases
        self._host_descriptors[here, slots] = all_descriptors
        whole = np.stack(rows, 1)
        narrow = is_narrow(whole)
        self._copies.scatter(all_bases, self._bases[here], slots)
        self._copies.scatter(all_descriptors, self._descriptors[here], slots)
        self._copies.scatter(np.where(narrow[..., None], whole, 0), self._directory[here], slots)
        self._narrow_sections[here] += narrow.sum((1, 2))
        self._sections[here] += narrow[0].size
        for index, layer in enumerate(layers):
            counts = int(self._narrow_sections[layer]), int(self._sections[layer])
            if layer not in self._wide and is_wide(*counts):
                self._widen(layer)
            if layer in self._wide:
                self._copies.scatter(whole[index][None], self._wide[layer][None], slots)

    def _widen(self, layer: int) -> None:
        """From here on the layer is read with the H planes of all units.

        What is captured in a graph goes on with the old directory, in which nothing changes but
        that wide sections are left to the kernel for exact tokens: slower, not wrong.
        """
        self._copies.wait_all()
        self._wide[layer] = self._directory[layer].clone()
        self._copies.owns(self._wide[layer])
        self._copies.follow()
        self._layers[layer] = replace(
            self._layers[layer],
            directory=self._wide[layer],
            wide_units=all_units(self._plans[0].head_dim),
        )

    def _directory_rows(
        self,
        words: NDArray[np.uint32],
        bases: NDArray[np.int64],
        descriptors: NDArray[np.int32],
        stored: NDArray[np.int64],
    ) -> NDArray[np.int32]:
        every = all_units(self._plans[0].head_dim)
        return directory_rows(words, bases, descriptors, wide_units=every, stored=stored)

    def _tables(self, sections: ResidentSections) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Bases and descriptors by layer and head."""
        descriptors = sections.descriptors.reshape(-1, self._heads, DESCRIPTOR_WORDS)
        return sections.bases.reshape(-1, self._heads), descriptors


class _Encoded:
    """Blocks as they came from the encoder, and what the host must know to place them.

    Attributes:
        data: uint32 on the device, all sections.
        starts, ends: int64 [layers, blocks, heads], of each section.
        descriptors: int32 [layers, blocks, heads, DESCRIPTOR_WORDS].
        heads: uint32, the leading words of each section; those of one begin at `heads_at`.
    """

    def __init__(
        self, words: torch.Tensor, starts: torch.Tensor, descriptors: torch.Tensor
    ) -> None:
        self.data = words
        shape = descriptors.shape[:3]
        self.blocks = shape[1]
        reach = torch.arange(_HEAD_WORDS, device=words.device)
        leading = words.view(torch.int32)[starts[:-1, None] + reach]
        # the one place where the host waits: it must know the lengths to find room
        ends = starts.cpu().numpy()
        self.descriptors = descriptors.cpu().numpy()
        self.heads = leading.cpu().numpy().view(np.uint32).reshape(-1)
        self.starts, self.ends = ends[:-1].reshape(shape), ends[1:].reshape(shape)
        self.heads_at = _HEAD_WORDS * np.arange(len(ends) - 1, dtype=np.int64).reshape(shape)

    def words(self, block: int) -> int:
        return int((self.ends[:, block, -1] - self.starts[:, block, 0]).sum())
