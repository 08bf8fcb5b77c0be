"""The bytes of a payload that a paged cache keeps, and what a kernel must know to read them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.config import CodecId
from packkv_kernels.errors import PayloadError
from packkv_kernels.format import tile
from packkv_kernels.format.payload import KVDtype, Payload, PayloadHeader
from packkv_kernels.format.raw import expand_values
from packkv_kernels.format.validate import describe_sections, section_words

__all__ = ["ResidentSections", "resident_sections", "resident_words"]


@dataclass(frozen=True)
class ResidentSections:
    """Sections as attention reads them: proven, and of `raw` expanded.

    Attributes:
        words: u32 [words], the sections one after the other.
        bases: int64 [sections], first word of each section in `words`, layer by layer.
        descriptors: int32 [sections, DESCRIPTOR_WORDS], offsets from the section's base.
    """

    words: NDArray[np.uint32]
    bases: NDArray[np.int64]
    descriptors: NDArray[np.int32]


def resident_sections(payload: Payload, layers: range | None = None) -> ResidentSections:
    """Proves a payload's sections and gives them in the form that a cache keeps.

    Tile sections stay as they are (a view of the payload); those of `raw` are expanded to values
    in the KV dtype, K [tokens, head_dim] then V, padded to 16 bytes.

    Args:
        payload: of which these layers, at least, are there.
        layers: one after the other; None: all. What is cached of all layers is what is cached of
            the first, then of the next, and so on.

    Raises:
        PayloadError: reason "section".
    """
    header = payload.header
    chosen = layers or range(header.layers)
    if header.codec is CodecId.RAW:
        return _expanded(payload, chosen)
    descriptors = describe_sections(payload, chosen)
    starts = (payload.sections[:, 0] - header.head_length) // 4
    ends = starts + payload.sections[:, 1] // 4
    first, last = chosen.start * header.heads, chosen.stop * header.heads
    begin, end = starts[first], ends[last - 1]
    words = section_words(payload)[begin:end]
    return ResidentSections(words, starts[first:last] - begin, descriptors)


def resident_words(header: PayloadHeader, payload_length: int) -> int:
    """How many words `resident_sections` of a whole resident payload gives."""
    if header.codec is CodecId.RAW:
        return header.section_count * int(_raw_descriptor(header)[tile.WORDS])
    return (payload_length - header.head_length) // 4


def _expanded(payload: Payload, layers: range) -> ResidentSections:
    header = payload.header
    row = _raw_descriptor(header)
    length = 2 * header.tokens * header.head_dim * header.kv_dtype.itemsize
    count = len(layers) * header.heads
    words = np.zeros((count, row[tile.WORDS]), np.uint32)
    for section in range(count):
        layer, head = divmod(layers.start * header.heads + section, header.heads)
        values = expand_values(payload.section(layer, head), length, header.kv_dtype.itemsize)
        words[section, : length // 4] = np.frombuffer(values, "<u4")
    if not _finite(words, header.kv_dtype):
        raise PayloadError("section", "a raw value is NaN or infinite")
    bases = np.arange(count, dtype=np.int64) * row[tile.WORDS]
    return ResidentSections(words.reshape(-1), bases, np.tile(row, (count, 1)))


def _finite(words: NDArray[np.uint32], dtype: KVDtype) -> bool:
    """Whether no value has the exponent of NaN and infinity."""
    exponent = {KVDtype.FLOAT16: 0x7C00, KVDtype.BFLOAT16: 0x7F80, KVDtype.FLOAT32: 0x7F800000}
    values = words.view("<u4" if dtype is KVDtype.FLOAT32 else "<u2")
    mask = values.dtype.type(exponent[dtype])
    return not ((values & mask) == mask).any()


def _raw_descriptor(header: PayloadHeader) -> NDArray[np.int32]:
    row = np.zeros(tile.DESCRIPTOR_WORDS, np.int32)
    side_words = header.tokens * header.head_dim * header.kv_dtype.itemsize // 4
    row[tile.TOKENS], row[tile.HEAD_DIM] = header.tokens, header.head_dim
    row[tile.STORAGE] = tile.FLOAT16 + int(header.kv_dtype)
    row[tile.WORDS] = -(-2 * side_words // 4) * 4
    row[tile.V_SIDE + tile.PLANE_A] = side_words
    return row
