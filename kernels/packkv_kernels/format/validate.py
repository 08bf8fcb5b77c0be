"""Proves untrusted sections sound, so that kernels may read them without a check of their own."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from packkv_kernels.config import CodecId
from packkv_kernels.errors import InvalidInput, PayloadError
from packkv_kernels.format.payload import Form, Payload
from packkv_kernels.format.proof import FAULTS, prove_sections
from packkv_kernels.format.tile import DESCRIPTOR_WORDS

__all__ = ["describe_sections", "section_words"]


def describe_sections(payload: Payload, layers: range | None = None) -> NDArray[np.int32]:
    """Proves sections of a tile codec's payload, and says where their parts lie.

    What is proven: flags that the codec writes, tokens and sinks of the header, bitmaps that nest
    and stay inside their units, parts that add up to the section's length to the word, padding of
    zeros, and no NaN or infinity among exact values and scales. Codes are any bits at all.

    Args:
        payload: of which these layers, at least, are there.
        layers: one after the other; None: all.

    Returns:
        int32 [layers · heads, DESCRIPTOR_WORDS], see `format.tile`.

    Raises:
        PayloadError: reason "section"; the message says which section and what.
        InvalidInput: the payload is `raw` or cold: it has no tiles.
    """
    header = payload.header
    if header.codec is CodecId.RAW:
        raise InvalidInput("a raw payload has no tiles: resident_sections() describes it")
    if header.form is Form.COLD:
        raise InvalidInput("a cold payload has no tiles: from_cold() makes it resident")
    chosen = layers or range(header.layers)
    rows = payload.sections[chosen.start * header.heads : chosen.stop * header.heads]
    descriptors = np.empty((len(rows), DESCRIPTOR_WORDS), np.int32)
    bases = (rows[:, 0] - header.head_length) // 4
    lengths = rows[:, 1] // 4
    extent = np.array([header.tokens, header.sinks, header.head_dim], np.int32)
    fault, section = prove_sections(
        section_words(payload), bases, lengths, int(header.codec), extent, descriptors
    )
    if fault:
        layer, head = divmod(chosen.start * header.heads + section, header.heads)
        raise PayloadError(
            "section", f"layer {layer}, head {header.first_head + head}: {FAULTS[fault]}"
        )
    return descriptors


def section_words(payload: Payload) -> NDArray[np.uint32]:
    """All sections as u32 words; word 0 is the first of section 0. Copied only if misaligned."""
    words: NDArray[Any] = np.frombuffer(payload.data, "<u4", offset=payload.header.head_length)
    if not words.flags.aligned:
        words = words.copy()
        words.flags.writeable = False
    return words
