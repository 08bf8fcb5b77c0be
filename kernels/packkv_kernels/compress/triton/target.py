"""Target: what kernels must know at compile time of the device that runs them."""

import os
from dataclasses import dataclass

import torch

__all__ = ["INTERPRETED", "Target"]

# Triton reads this once, when a kernel is defined.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Target:
    """Compile-time switches of a device.

    Attributes:
        asm: whether inline PTX may be used; else plain operations of the same meaning.
        lanes: threads of a warp.
        precision: what `tl.dot` calls a float32 product that loses no bits worth mention.
        tiles: tiles of one iteration of decode attention. Four warps of 32 lanes take four; AMD's
            64 lanes do not match the fragments, and convert them in shared memory: fewer fit.
    """

    asm: bool
    lanes: int
    precision: str
    tiles: int

    def registers(self, most: int) -> dict[str, int]:
        """The launch option for so many registers of a thread; without it, NVIDIA's compiler
        bounds itself, and rather spills."""
        return {"maxnreg": most} if self.asm else {}

    @staticmethod
    def of(device: torch.device) -> "Target":
        """The switches for tensors on `device`."""
        if INTERPRETED or device.type != "cuda":
            return Target(asm=False, lanes=32, precision="ieee", tiles=4)
        return AMD if torch.version.hip else NVIDIA


NVIDIA = Target(asm=True, lanes=32, precision="tf32x3", tiles=4)
AMD = Target(asm=False, lanes=64, precision="ieee", tiles=2)
