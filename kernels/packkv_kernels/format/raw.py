"""Section of the `raw` codec: K then V in the KV dtype, as byte planes in one zstandard frame."""

import struct

import numpy as np

from packkv_kernels.errors import PayloadError
from packkv_kernels.format.header import ALIGNMENT

__all__ = ["compress_values", "expand_values"]

_HEAD = struct.Struct("<IIQ")
_LEVEL = 1


def compress_values(values: bytes, itemsize: int) -> bytes:
    """A section from the bytes of K [tokens, head_dim] then V."""
    import zstandard

    planes = np.frombuffer(values, np.uint8).reshape(-1, itemsize).T
    frame = zstandard.ZstdCompressor(level=_LEVEL).compress(planes.tobytes())
    section = _HEAD.pack(len(frame), 0, 0) + frame
    return section + bytes(-len(section) % ALIGNMENT)


def expand_values(section: memoryview, length: int, itemsize: int) -> bytes:
    """The bytes that `compress_values` was given.

    Args:
        section: untrusted bytes.
        length: how many bytes the values must have; never is more memory taken than that.
        itemsize: bytes of one value.

    Raises:
        PayloadError: reason "section".
    """
    planes = _expand_frame(_frame_of(section), length)
    return np.frombuffer(planes, np.uint8).reshape(itemsize, -1).T.tobytes()


def _frame_of(section: memoryview) -> memoryview:
    compressed, zero, zeros = _HEAD.unpack_from(section)
    end = _HEAD.size + compressed
    if zero or zeros or any(section[end:]) or not end <= len(section) < end + ALIGNMENT:
        raise PayloadError(
            "section", f"frame of {compressed} bytes in a section of {len(section)}, or padding"
        )
    return section[_HEAD.size : end]


def _expand_frame(frame: memoryview, length: int) -> bytes:
    import zstandard

    try:
        # a frame that states its size makes the library allocate just that, so state it first
        stated = zstandard.get_frame_parameters(frame).content_size
        if stated != length:
            raise PayloadError("section", f"frame of {stated} values' bytes, not {length}")
        planes = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PayloadError("section", f"not a zstandard frame: {error}") from None
    if len(planes) != length:
        raise PayloadError("section", f"frame expands to {len(planes)} bytes, not {length}")
    return planes
