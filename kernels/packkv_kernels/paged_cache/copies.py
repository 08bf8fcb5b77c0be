"""Copies: bytes from host memory to a device, on a stream of their own, layer by layer."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Copies"]

# Two halves: one is filled while the other is on its way.
STAGING_BYTES = 16 << 20

_ALIGN = 16


class Copies:
    """Copies that overlap with computing, and say when a layer has arrived.

    Bytes go through a staging buffer of fixed size, pinned where the device is a GPU. On a device
    without streams the same calls copy at once, and there is nothing to wait for.
    """

    def __init__(
        self, device: torch.device, layers: int, *, staging_bytes: int = STAGING_BYTES
    ) -> None:
        """
        Args:
            device: where copies go.
            layers: that are waited for one by one.
            staging_bytes: of host memory, a multiple of 32.
        """
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._halves = torch.empty(
            2, staging_bytes // 2, dtype=torch.uint8, pin_memory=self._stream is not None
        )
        self._half, self._filled = 0, 0
        self._sent: list[torch.cuda.Event | None] = [None, None]
        self._arrived: list[torch.cuda.Event | None] = [None] * layers

    def send(self, source: NDArray[Any], target: torch.Tensor) -> None:
        """Copies an array to as many bytes of a contiguous tensor; `source` is free afterwards."""
        data, room = np.ascontiguousarray(source).reshape(-1).view(np.uint8), _bytes_of(target)
        size = self._halves.shape[1]
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            staged = self._staged(len(piece))
            staged.numpy()[:] = piece
            with self._running():
                room[start : start + len(piece)].copy_(staged, non_blocking=True)

    def scatter(self, rows: NDArray[Any], target: torch.Tensor, places: Sequence[int]) -> None:
        """target[:, places] = rows [·, len(places), …] of the same dtype."""
        index = np.array(places, np.int64)
        with self._running():
            landed = torch.empty(rows.shape, dtype=target.dtype, device=target.device)
            at = torch.empty(len(places), dtype=torch.int64, device=target.device)
        self.send(rows, landed)
        self.send(index, at)
        with self._running():
            target.index_copy_(1, at, landed)

    def owns(self, *tensors: torch.Tensor) -> None:
        """Keeps the memory of tensors from being given away while copies into them run."""
        if self._stream is not None:
            for tensor in tensors:
                tensor.record_stream(self._stream)

    def follow(self) -> None:
        """Copies from here on start after all that was launched so far: it may read their place."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def arrives(self, layer: int) -> None:
        """What was sent so far is all of a layer."""
        self._arrived[layer] = self._event()

    def wait(self, layer: int) -> None:
        """What is launched from here on starts after the layer has arrived. The host goes on."""
        event = self._arrived[layer]
        if event is None:
            return
        if event.query():  # type: ignore[no-untyped-call]
            self._arrived[layer] = None
        elif self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(event)

    def wait_all(self) -> None:
        """What is launched from here on starts after every copy. The host goes on."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def _staged(self, count: int) -> torch.Tensor:
        """Bytes of the staging buffer that no copy reads any more."""
        size = self._halves.shape[1]
        if self._filled + count > size:
            self._sent[self._half] = self._event()
            self._half, self._filled = 1 - self._half, 0
            sent = self._sent[self._half]
            if sent is not None:
                sent.synchronize()
        start = self._filled
        self._filled += -(-count // _ALIGN) * _ALIGN
        return self._halves[self._half, start : start + count]

    def _running(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _event(self) -> torch.cuda.Event | None:
        return None if self._stream is None else self._stream.record_event()


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)
