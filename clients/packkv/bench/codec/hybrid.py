"""Our own codecs as they are stored: through the real encoder, payloads and decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from packkv.bench.codec.setting import SINKS, KeysValues
from packkv_kernels.compress import decode_block
from packkv_kernels.config import CodecConfig
from packkv_kernels.errors import InvalidInput
from packkv_kernels.format import read_payload
from packkv_kernels.profile import Profile
from packkv_kernels.testing import encode_payloads

__all__ = ["PayloadSetting"]


@dataclass(frozen=True)
class PayloadSetting:
    """A codec of `packkv_kernels` with its profile.

    Attributes:
        config: the codec.
        profile: of the model, with or without budgets; None for codecs that need none.
        note: what the configuration does not say, as the KL that the budgets aim at.
    """

    config: CodecConfig
    profile: Profile | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.config.sinks != SINKS:
            raise InvalidInput(f"every codec keeps {SINKS} sinks here, not {self.config.sinks}")

    @property
    def label(self) -> str:
        parameters = str(self.config).partition(":")[2]
        return ", ".join(filter(None, (self.note, parameters)))

    def encode(self, keys: torch.Tensor, values: torch.Tensor) -> _Payloads:
        return _Payloads(
            encode_payloads(keys, values, self.config, self.profile), self.config, self.profile
        )


@dataclass(frozen=True)
class _Payloads:
    payloads: list[bytearray]
    config: CodecConfig
    profile: Profile | None

    @property
    def nbytes(self) -> int:
        return sum(len(payload) for payload in self.payloads)

    def decode(self) -> KeysValues:
        blocks = [
            decode_block(read_payload(payload), self.config, self.profile)
            for payload in self.payloads
        ]
        return torch.cat([k for k, _ in blocks], 1), torch.cat([v for _, v in blocks], 1)
