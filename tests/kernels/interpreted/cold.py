"""Cold sections decoded by kernels against the host's decoder. Run by test_triton_interpreted.py;
not a test file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig
from packkv_kernels.entropy import ColdHead, from_cold, section_decoder, to_cold
from packkv_kernels.entropy.cold_plan import CODED, LANES_AT
from packkv_kernels.entropy.tables import decode_tables
from packkv_kernels.entropy.triton.cold import ColdDecoder, cold_to_resident
from packkv_kernels.errors import InvalidInput, PayloadError
from packkv_kernels.format import Form, Payload, read_payload, resident_sections, write_payload
from packkv_kernels.testing import encode_payloads, poisoned_memory, random_kv, random_profile

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[1] / "golden"
POISON = 0xA5A5A5A5


def golden(name: str) -> Payload:
    return read_payload((GOLDEN / f"{name}.payload").read_bytes())


def cold_of(
    spelled: str, shape: CacheShape, tokens: int = BLOCK_TOKENS, *, loud: tuple[int, ...] = ()
) -> Payload:
    """The last block of random tokens, with values beyond what has codes in some channels."""
    config = CodecConfig.parse(spelled)
    keys, values = random_kv(shape, tokens)
    for channel in loud:
        keys[0, 0, ::3, channel] = 60_000
    profile = random_profile(shape) if config.needs_profile else None
    resident = read_payload(encode_payloads(keys, values, config, profile)[-1])
    payload = read_payload(to_cold(resident))
    assert payload.header.form is Form.COLD
    return payload


def check(payloads: Sequence[Payload]) -> None:
    """What comes back is what the host makes of them, to the word, with its descriptors."""
    right = [resident_sections(from_cold(payload)) for payload in payloads]
    found = cold_to_resident(payloads, CPU)
    found.prove()
    assert np.array_equal(found.words.numpy(), np.concatenate([part.words for part in right]))
    before = np.cumsum([0] + [len(part.words) for part in right[:-1]])
    bases = [at + part.bases for at, part in zip(before, right, strict=True)]
    assert np.array_equal(found.bases, np.concatenate(bases))
    assert np.array_equal(found.descriptors, np.concatenate([part.descriptors for part in right]))
    assert [header.form for header in found.headers] == [Form.RESIDENT] * len(payloads)


def partial() -> None:
    """Of hybrid: fewer tokens than a block, sinks, one-byte scales."""
    check([golden("hybrid-partial-cold")])


def through() -> None:
    """What the host gets back through a device, layer by layer: its own payload, or its own no."""
    payload, decode = golden("packkv-cold"), section_decoder("triton", CPU)
    head, right = ColdHead.of(payload), from_cold(payload)
    words = np.zeros(head.payload_length // 4, np.uint32)
    for layer in range(payload.header.layers):
        decode(head, payload.data, words, range(layer, layer + 1))
    assert bytes(head.finish(words).data) == bytes(right.data)
    decode(head, payload.data, words, range(0))
    changed = bytearray(payload.data)
    lanes_at = 4 * int(head.plan(payload.data).rows[-1, LANES_AT])
    changed[int(head.cold_sections[0, 0]) + lanes_at] ^= 0xFF
    for decoder in (decode, ColdHead.decode):
        with pytest.raises(PayloadError, match="of layer 1, head 1 does not add up"):
            decoder(head, memoryview(changed), words, range(1, 2))


def together() -> None:
    """Payloads of both codecs in one call."""
    check([golden("packkv-cold"), golden("hybrid-partial-cold")])


def wide() -> None:
    """Units of four channels of V, units of every width on K, and a raw tile."""
    payload = cold_of("hybrid:delta=0.1,v_levels=8", CacheShape(1, 5, 68), 37, loud=(3,))
    plan = ColdHead.of(payload).plan(payload.data)
    assert plan.widths[:, :17].max() == 8
    assert (plan.rows[:, CODED : CODED + 2] == [[0, 1]]).all(1).any()
    check([payload])


def wild() -> None:
    """Lanes of any bits: refused where the host refuses them, else the same words, and nothing
    outside their places."""
    payload = cold_of("packkv:rel_k=0.01,rel_v=0.01", CacheShape(3, 2, 8))
    shape, head = payload.header, ColdHead.of(payload)
    # codes of eight bits have low ones that follow their codewords as they are
    assert head.plan(payload.data).widths.max() == 8
    draw, data = np.random.default_rng(0), bytearray(payload.data)
    begins = head.plan(payload.data).rows[:, LANES_AT] * 4 + head.cold_sections[0, 0]
    # the first layer stays as it is; of the others ever more bits are turned
    for section in range(shape.heads, len(begins)):
        end = int(head.cold_sections[section].sum()) - 16
        for _ in range(section**2):
            data[int(draw.integers(begins[section], end))] ^= 1 << int(draw.integers(8))
    changed = memoryview(data)
    plans = [head.plan(changed, range(layer, layer + 1)) for layer in range(shape.layers)]
    words, verdicts = _by_host(head, changed)
    # every place between words that are nobody's
    begins = head.sections[:: shape.heads, 0] // 4
    starts = [8 * layer + int(at) for layer, at in enumerate(begins)]
    out = torch.full((starts[-1] + plans[-1].resident_words + 8,), POISON, dtype=torch.uint32)
    faults = ColdDecoder(shape.head_dim, CPU)(plans, out, starts)
    assert faults.reshape(-1, shape.heads).any(1).tolist() == verdicts
    assert any(verdicts)
    assert not verdicts[0]
    found, nobodys = out.numpy(), np.ones(len(out), np.bool_)
    for start, plan, right, wrong in zip(starts, plans, words, verdicts, strict=True):
        nobodys[start : start + plan.resident_words] = False
        assert wrong or np.array_equal(found[start : start + plan.resident_words], right)
    assert (found[nobodys] == POISON).all()


def _by_host(head: ColdHead, data: memoryview) -> tuple[list[NDArray[np.uint32]], list[bool]]:
    """Words of each layer, and whether it is refused."""
    words, verdicts = [], []
    for layer in range(head.header.layers):
        out = np.zeros(head.payload_length // 4, np.uint32)
        try:
            head.decode(data, out, range(layer, layer + 1))
            verdicts.append(False)
        except PayloadError:
            verdicts.append(True)
        rows = slice(layer * head.header.heads, (layer + 1) * head.header.heads)
        first, end = head.sections[rows][0, 0] // 4, head.sections[rows][-1].sum() // 4
        words.append(out[first:end])
    return words, verdicts


def split() -> None:
    """What does not fit the memory at once goes in turns, to the same words."""
    payload = golden("packkv-cold")
    head = ColdHead.of(payload)
    plans = [head.plan(payload.data, range(layer, layer + 1)) for layer in range(2)]
    # room for the tables of one payload; and, by force, for the symbols of one section
    decoder = ColdDecoder(16, CPU, scratch_bytes=2 << 20)
    decoder._sections = 1
    out = torch.zeros(sum(plan.resident_words for plan in plans), dtype=torch.uint32)
    assert not decoder(plans, out, [0, plans[0].resident_words]).any()
    assert np.array_equal(out.numpy(), resident_sections(from_cold(payload)).words)


def tables() -> None:
    """Every entry of every table is the host's."""
    payload = golden("hybrid-partial-cold")
    plan, decoder = ColdHead.of(payload).plan(payload.data), ColdDecoder(16, CPU)
    found = decoder.spread(decoder.send([plan], [0])).numpy()[0]
    for side in range(2):
        assert np.array_equal(found[side], decode_tables(plan.lengths[side], side))


def refused() -> None:
    payload = golden("packkv-cold")
    plan = ColdHead.of(payload).plan(payload.data)
    out = torch.zeros(plan.resident_words, dtype=torch.uint32)
    with pytest.raises(InvalidInput, match="no payloads"):
        cold_to_resident([], CPU)
    with pytest.raises(InvalidInput, match="resident, not cold"):
        cold_to_resident([golden("packkv")], CPU)
    with pytest.raises(InvalidInput, match="no plans"):
        ColdDecoder(16, CPU)([], out, [])
    with pytest.raises(InvalidInput, match="whose head_dim is not 32"):
        ColdDecoder(32, CPU)([plan], out, [0])
    for start in (-1, 1):
        with pytest.raises(InvalidInput, match="not within"):
            ColdDecoder(16, CPU)([plan], out, [start])
    with pytest.raises(InvalidInput, match="too little"):
        ColdDecoder(16, CPU, scratch_bytes=1 << 19)
    exact = bytearray(payload.data)
    at = int(payload.sections[0, 0])
    assert payload.header.sinks
    exact[at : at + 2] = np.float16("nan").tobytes()
    with pytest.raises(PayloadError, match="layer 0, head 0 an exact value"):
        cold_to_resident([_sealed(payload, exact)], CPU)


def _sealed(payload: Payload, data: bytearray) -> Payload:
    """The payload with other sections, and checksums that are right."""
    view, header = memoryview(data), payload.header
    sections = [view[start : start + size] for start, size in payload.sections.tolist()]
    preamble = bytes(view[header.preamble_at : header.head_length])
    return read_payload(write_payload(header, sections, preamble))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with poisoned_memory():
        for name in sys.argv[1:]:
            globals()[name]()
