"""SectionDecoder: sections of cold payloads through a device, for who wants them in host memory."""

import threading

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.entropy.cold_head import ColdHead
from packkv_kernels.entropy.triton.cold import ColdDecoder

__all__ = ["SectionDecoder"]


class SectionDecoder:
    """Does what `ColdHead.decode` does, on a stream of its own. Thread-safe, one call at a time.

    Payloads are proven, shared between loads and kept by pages in host memory, so sections come
    back there; what is saved is the host's time for the bits of lanes.
    """

    def __init__(self, device: torch.device) -> None:
        """
        Args:
            device: where kernels run.
        """
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
        self._decoders: dict[int, ColdDecoder] = {}
        self._lock = threading.Lock()

    def __call__(
        self,
        head: ColdHead,
        cold: memoryview,
        out: NDArray[np.uint32],
        layers: range | None = None,
    ) -> None:
        """Decodes some layers into their places in the resident payload, and waits for it.

        Args:
            head: of the cold payload.
            cold: the cold payload, of which these layers are there.
            out: u32 words of the resident payload.
            layers: one after the other; None: all.

        Raises:
            PayloadError: reason "section": bytes that no section has.
        """
        chosen = range(head.header.layers) if layers is None else layers
        if not chosen:
            return
        plan = head.plan(cold, chosen)
        # the stream is no more than this thread's while it has the lock
        with self._lock, torch.cuda.stream(self._stream):
            words = torch.empty(plan.resident_words, dtype=torch.uint32, device=self._device)
            wrong = self._decoder(head.header.head_dim)([plan], words, [0]).cpu().numpy()
            decoded = words.cpu().numpy()
        first = chosen.start * head.header.heads
        head.refuse(np.flatnonzero(wrong) + first)
        start = int(head.sections[first, 0]) // 4
        out[start : start + len(decoded)] = decoded

    def _decoder(self, head_dim: int) -> ColdDecoder:
        if head_dim not in self._decoders:
            self._decoders[head_dim] = ColdDecoder(head_dim, self._device)
        return self._decoders[head_dim]
