"""Who decodes the sections of cold payloads: cores, or a device."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.backend import TRITON, choose_backend
from packkv_kernels.entropy.cold_head import ColdHead

__all__ = ["DecodeSections", "section_decoder"]


class DecodeSections(Protocol):
    """What `ColdHead.decode` does, wherever it is done."""

    def __call__(
        self,
        head: ColdHead,
        cold: memoryview,
        out: NDArray[np.uint32],
        layers: range | None = None,
        /,
    ) -> None: ...


def section_decoder(backend: str | None, device: torch.device) -> DecodeSections:
    """That of a backend; None: the best for the device.

    Raises:
        InvalidInput: no such backend on this machine.
    """
    if choose_backend(backend, device) != TRITON:
        return ColdHead.decode
    from packkv_kernels.entropy.triton.section_decoder import SectionDecoder

    return SectionDecoder(device)
