"""Codebook: one shared Huffman code over 8-bit quantisation codes, as KVComp keeps per layer."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.entropy.canonical import MAX_LENGTH, codewords, is_complete, limit_lengths
from packkv_kernels.errors import InvalidInput, PayloadError

__all__ = ["ESCAPE", "RAW_BITS", "SYMBOLS", "Codebook"]

ESCAPE: Final = 256  # says that a code follows as it is, in 8 bits
SYMBOLS: Final = 257
RAW_BITS: Final = 8


@dataclass(frozen=True, eq=False)
class Codebook:
    """A canonical code of at most 12 bits that can spell every 8-bit code.

    Attributes:
        lengths: uint8 [257], of codes 0 … 255 and of the escape; 0 for a code that only the
            escape can spell.
    """

    lengths: NDArray[np.uint8]

    @classmethod
    def fit(cls, histogram: NDArray[np.int64]) -> "Codebook":
        """The code of least total length for counts [256] of codes, with room for an escape.

        Raises:
            InvalidInput: not 256 counts ≥ 0.
        """
        if histogram.shape != (ESCAPE,) or (histogram < 0).any():
            raise InvalidInput(f"a histogram {histogram.shape} is not 256 counts")
        # the escape may come as seldom as it likes, but a code of one symbol would spell nothing
        counts = np.append(histogram, 1)
        if not histogram.any():
            counts[0] = 1
        lengths = np.empty(SYMBOLS, np.uint8)
        limit_lengths(counts, MAX_LENGTH, lengths)
        return cls(lengths)

    def codewords(self) -> NDArray[np.uint16]:
        """[257], first bit lowest."""
        found = np.empty(SYMBOLS, np.uint16)
        codewords(self.lengths, found)
        return found

    def to_bytes(self) -> bytes:
        """First and last code that have a codeword; 4 bits for the escape, and for each between."""
        used = np.flatnonzero(self.lengths[:ESCAPE])
        first, last = int(used[0]), int(used[-1])
        nibbles = np.append(self.lengths[ESCAPE], self.lengths[first : last + 1])
        nibbles = np.pad(nibbles, (0, len(nibbles) % 2))
        return bytes((first, last, *(nibbles[::2] | nibbles[1::2] << 4).tolist()))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> "Codebook":
        """Reads what `to_bytes` wrote.

        Raises:
            PayloadError: reason "section": anything else.
        """
        lengths = np.zeros(SYMBOLS, np.uint8)
        first, last = (data[0], data[1]) if len(data) > 2 else (1, 0)
        count = last - first + 2
        if first > last or len(data) != 2 + (count + 1) // 2:
            raise PayloadError("section", f"{len(data)} bytes are no codebook {first} … {last}")
        packed = np.frombuffer(data[2:], np.uint8)
        nibbles = np.stack([packed & 15, packed >> 4], 1).reshape(-1)
        lengths[ESCAPE], lengths[first : last + 1] = nibbles[0], nibbles[1:count]
        sound = lengths[first] and lengths[last] and lengths[ESCAPE]
        if not sound or nibbles[count:].any() or not is_complete(lengths, MAX_LENGTH):
            raise PayloadError("section", "a codebook is not a complete code with an escape")
        return cls(lengths)
