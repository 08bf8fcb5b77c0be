"""When cold coding pays: fewer bytes over a link or a disk, against the time that coding takes."""

import math
from dataclasses import dataclass

from packkv_kernels.errors import InvalidInput

__all__ = ["ColdRates", "cold_gain_s_per_byte"]


@dataclass(frozen=True)
class ColdRates:
    """What cold coding does to payloads of one codec on one machine, as measured there.

    Attributes:
        saving: share of a payload's bytes that its cold form lacks, 0 … 1.
        encode_bytes_per_s, decode_bytes_per_s: payload bytes that are coded, and come back, in a
            second, with the threads that may be used for it; infinite if somebody else does it.
    """

    saving: float
    encode_bytes_per_s: float
    decode_bytes_per_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.saving < 1:
            raise InvalidInput(f"saving {self.saving} is outside 0 … 1")
        for name in ("encode_bytes_per_s", "decode_bytes_per_s"):
            if not getattr(self, name) > 0:
                raise InvalidInput(f"{name} {getattr(self, name)} is not above 0")


def cold_gain_s_per_byte(
    rates: ColdRates,
    bytes_per_s: float,
    *,
    writes: float = 0.0,
    reads: float = 1.0,
    overlaps: bool = False,
) -> float:
    """Seconds that each payload byte gains by going over a link, or to a disk, in its cold form.

    Coding pays where this is above 0. A write costs an encoding and a read a decoding, whoever
    does it; with rates of the other end infinite, it is this end's gain.

    Args:
        rates: of the payload's codec.
        bytes_per_s: of the link or disk alone, > 0.
        writes, reads: how often a payload goes one way and the other, ≥ 0. Zero writes and one
            read is what a load gains of a block that is cold already.
        overlaps: whether coding goes on while other bytes are under way: then only the slower of
            the two counts.

    Raises:
        InvalidInput: a rate or count beyond its limits.
    """
    if not bytes_per_s > 0:
        raise InvalidInput(f"bytes_per_s {bytes_per_s} is not above 0")
    if not (0 <= writes < math.inf and 0 <= reads < math.inf):
        raise InvalidInput(f"writes {writes}, reads {reads}: counts are finite and not below 0")
    plain_s, cold_s = 1 / bytes_per_s, (1 - rates.saving) / bytes_per_s
    gain_s = 0.0
    for count, coding in ((writes, rates.encode_bytes_per_s), (reads, rates.decode_bytes_per_s)):
        spent_s = max(cold_s, 1 / coding) if overlaps else cold_s + 1 / coding
        gain_s += count * (plain_s - spent_s)
    return gain_s
