"""Row: one figure of a run, and the bench that makes rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from packkv.bench.kernels.gpu.clock import Clock

__all__ = ["Bench", "Row"]


@dataclass(frozen=True)
class Row:
    """One measurement. Of a rehearsal, and where there is nothing to compare with, fields are None.

    Attributes:
        kernel: what ran; attention of any kind has `attention` in its name.
        experiment: the question that it settles, "" for one of the plain cases.
        detail: the setting within an experiment.
        context, batch, group: tokens, sequences, queries per KV head; 0 where there are none.
        us: median time of a call.
        gbs: bytes that must move per second.
        ratio: fp16 bytes over stored bytes.
        speedup_vs_sdpa_fp16: time of torch's fp16 attention over its own.
        rel_error: norm of the error over that of the exact result.
        roofline: gbs over what a copy of this device reaches.
    """

    kernel: str
    experiment: str = ""
    detail: str = ""
    context: int = 0
    batch: int = 0
    group: int = 0
    us: float | None = None
    gbs: float | None = None
    ratio: float | None = None
    speedup_vs_sdpa_fp16: float | None = None
    rel_error: float | None = None
    roofline: float | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class Bench:
    """Times calls and turns them into rows.

    Attributes:
        device: where everything runs.
        clock: what times it.
        copy_gbs: bytes read and written per second by a copy; None in a rehearsal.
    """

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self.device, self.clock = device, clock
        self.copy_gbs: float | None = None
        size = 1 << 29 if device.type == "cuda" else 64
        source = torch.zeros(size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        self.copy_gbs = self._rate(clock.us(lambda: target.copy_(source)), 2 * size)

    @staticmethod
    def _rate(us: float | None, moved: float) -> float | None:
        return None if us is None else moved / us / 1e3

    def row(
        self,
        kernel: str,
        call: Callable[[], object],
        moved: float,
        *,
        base: float | None = None,
        **fields: object,
    ) -> Row:
        """Times a call.

        Args:
            kernel: its name.
            call: what is timed.
            moved: bytes that must move.
            base: µs of fp16 attention over the same tokens.
            fields: of the row, as they are.
        """
        us = self.clock.us(call)
        gbs = self._rate(us, moved)
        return Row(
            kernel,
            us=us,
            gbs=gbs,
            speedup_vs_sdpa_fp16=None if us is None or base is None else base / us,
            roofline=None if gbs is None or not self.copy_gbs else gbs / self.copy_gbs,
            **fields,  # type: ignore[arg-type]
        )

    def randn(self, *shape: int) -> torch.Tensor:
        """fp16 noise on the device, the same on every machine."""
        generator = torch.Generator().manual_seed(sum(shape))
        if self.device.type == "cuda":
            generator = torch.Generator(self.device).manual_seed(sum(shape))
        return torch.randn(*shape, generator=generator, device=self.device).half()
