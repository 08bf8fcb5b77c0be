"""Packs as bytes: what the paper's count stands for, really written and read back.

    byte 0        m, bits of a minimum
    bit stream    of every pack and channel: minimum, m bits
                  then of every pack and channel: width, bit_length(m) bits
                  then of every pack and channel: its tokens' codes, width bits each

Bits fill bytes from the least significant; the stream is rounded up to whole bytes once, at its
end. Nothing else is needed to read it but the shape, so a block stands alone.
"""

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.errors import InvalidInput, PayloadError
from packkv_kernels.packs.accounting import bit_lengths
from packkv_kernels.packs.bits import read_bits, read_codes, write_bits, write_codes

__all__ = ["PACK_TOKENS", "decode_packs", "encode_packs"]

# The pack lengths of the paper; it settles on the longest.
PACK_TOKENS = (4, 8, 16)


def encode_packs(integers: NDArray[np.int32], pack_tokens: int = 16) -> bytes:
    """The integers of K or V of one block and layer.

    Args:
        integers: int32 [tokens, …], ≥ 0, in the order in which tokens are cut into packs; a last
            pack may be shorter.
        pack_tokens: tokens per pack.

    Raises:
        InvalidInput: no tokens, or an integer below 0.
    """
    rows = np.ascontiguousarray(integers.reshape(len(integers), -1), np.int32)
    if rows.size == 0 or rows.min() < 0 or pack_tokens < 1:
        raise InvalidInput(f"cannot pack {rows.shape} integers by {pack_tokens} from {rows.min()}")
    starts = np.arange(0, len(rows), pack_tokens)
    low = np.minimum.reduceat(rows, starts)
    widths = bit_lengths(np.maximum.reduceat(rows, starts) - low)
    minimum_bits = int(rows.max()).bit_length()
    width_bits = minimum_bits.bit_length()
    sizes = np.diff(np.append(starts, len(rows)))
    code_bits = int((widths * sizes[:, None]).sum())
    stream = np.zeros(-(-(low.size * (minimum_bits + width_bits) + code_bits) // 8), np.uint8)
    at = write_bits(stream, 0, low.ravel(), minimum_bits)
    at = write_bits(stream, at, widths.ravel(), width_bits)
    write_codes(stream, at, rows, low, widths, pack_tokens)
    return bytes([minimum_bits]) + stream.tobytes()


def decode_packs(data: bytes, shape: tuple[int, ...], pack_tokens: int = 16) -> NDArray[np.int32]:
    """The integers that `encode_packs` was given.

    Args:
        data: what it returned.
        shape: of the integers, tokens first.
        pack_tokens: as encoded.

    Raises:
        PayloadError: fewer or more bytes than the integers take, or widths beyond 31 bits.
    """
    tokens, channels = shape[0], int(np.prod(shape[1:]))
    packs = -(-tokens // pack_tokens)
    minimum_bits = data[0] if data else 0
    width_bits = minimum_bits.bit_length()
    stream = np.frombuffer(data, np.uint8)[1:]
    head = packs * channels * (minimum_bits + width_bits)
    if not data or minimum_bits > 31 or 8 * len(stream) < head:
        raise PayloadError("section", f"{len(data)} bytes cannot be packs of {shape}")
    low = read_bits(stream, 0, packs * channels, minimum_bits).reshape(packs, channels)
    at = packs * channels * minimum_bits
    widths = read_bits(stream, at, packs * channels, width_bits).reshape(packs, channels)
    sizes = np.minimum(pack_tokens, tokens - pack_tokens * np.arange(packs))
    bits = head + int((widths * sizes[:, None]).sum())
    if len(stream) != -(-bits // 8) or widths.max() > minimum_bits:
        raise PayloadError("section", f"packs of {shape} take {bits} bits, not {len(stream)} bytes")
    rows = np.empty((tokens, channels), np.int32)
    read_codes(stream, head, rows, low, widths, pack_tokens)
    return rows.reshape(shape)
