"""Payload: no byte can change, be missing or belong to another block without being noticed."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from packkv_kernels.config import CacheShape, CodecId, HybridConfig
from packkv_kernels.errors import InvalidInput, PayloadError
from packkv_kernels.format import (
    Expectation,
    Form,
    KVDtype,
    PayloadHeader,
    open_payload,
    read_payload,
    verify_layers,
    write_payload,
)
from packkv_kernels.testing import encode_payloads, random_kv, random_profile

HEADER = PayloadHeader(
    codec=CodecId.HYBRID,
    kv_dtype=KVDtype.BFLOAT16,
    tokens=7,
    sinks=4,
    layers=2,
    first_head=3,
    heads=1,
    head_dim=8,
    root_hash=bytes(range(32)),
    chain_hash=bytes(range(32, 64)),
    codec_digest=bytes(range(64, 96)),
    profile_digest=bytes(range(96, 128)),
    first_token=0,
)


@pytest.fixture(scope="module")
def payload() -> bytes:
    shape = CacheShape(1, 2, 8)
    keys, values = random_kv(shape, 3)
    profile = random_profile(shape)
    return bytes(encode_payloads(keys, values, HybridConfig(), profile)[0])


def test_what_is_written_is_read() -> None:
    sections = [bytes(range(16)), bytes(32)]
    payload = read_payload(write_payload(HEADER, sections))
    assert payload.header == HEADER
    assert [bytes(payload.section(layer, 0)) for layer in range(2)] == sections


@pytest.mark.parametrize("compute_ms", [2.0**-24, 12.5, 65_504.0])
def test_what_a_block_took_is_kept_in_half_precision(compute_ms: float) -> None:
    data = write_payload(replace(HEADER, compute_ms=compute_ms), [bytes(16)] * 2)
    assert read_payload(data).header.compute_ms == compute_ms
    near = write_payload(replace(HEADER, compute_ms=0.9999 * compute_ms), [bytes(16)] * 2)
    assert read_payload(near).header.compute_ms == pytest.approx(compute_ms, rel=2**-10)


def test_a_preamble_lies_between_table_and_sections() -> None:
    sections, preamble = [bytes(range(16)), bytes(32)], bytes(range(100, 132))
    header = replace(HEADER, form=Form.COLD, preamble_bytes=32)
    data = write_payload(header, sections, preamble)
    payload = read_payload(data)
    assert payload.header == header
    assert header.preamble_at == HEADER.head_length
    assert payload.data[header.preamble_at : header.head_length] == preamble
    assert [bytes(payload.section(layer, 0)) for layer in range(2)] == sections
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises(PayloadError):
            read_payload(changed)


def test_every_single_bit_counts(payload: bytes) -> None:
    read_payload(payload)
    for bit in range(8 * len(payload)):
        changed = bytearray(payload)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PayloadError):
            read_payload(changed)


def test_a_payload_is_opened_by_its_head_and_verified_layer_by_layer() -> None:
    header = replace(HEADER, layers=3, heads=2)
    payload = bytes(write_payload(header, [bytes([number]) * 32 for number in range(1, 7)]))
    whole = read_payload(payload)
    head_length, heads = whole.header.head_length, whole.header.heads
    arriving = bytearray(payload[:head_length]) + bytes(len(payload) - head_length)
    opened = open_payload(arriving)
    assert opened.header == whole.header
    for layer in range(whole.header.layers):
        with pytest.raises(PayloadError, match=f"section {layer * heads} differs"):
            verify_layers(opened, range(layer, layer + 1))
        begin = int(whole.sections[layer * heads, 0])
        end = int(whole.sections[(layer + 1) * heads - 1].sum())
        arriving[begin:end] = payload[begin:end]
        verify_layers(opened, range(layer + 1))
        arriving[end - 1] ^= 1
        with pytest.raises(PayloadError, match=f"section {(layer + 1) * heads - 1} differs"):
            verify_layers(opened, range(layer + 1))
        arriving[end - 1] ^= 1
    arriving[head_length - 1] ^= 1
    with pytest.raises(PayloadError):
        open_payload(arriving)


def test_every_truncation_is_refused(payload: bytes) -> None:
    for length in range(len(payload)):
        with pytest.raises(PayloadError) as caught:
            read_payload(payload[:length])
        assert caught.value.reason == "truncated"


def test_bytes_after_the_end_are_refused(payload: bytes) -> None:
    with pytest.raises(PayloadError) as caught:
        read_payload(payload + bytes(16))
    assert caught.value.reason == "layout"


@pytest.mark.parametrize(
    ("offset", "reason"), [(0, "magic"), (8, "version"), (13, "layout"), (27, "layout")]
)
def test_the_reason_says_what_is_wrong(payload: bytes, offset: int, reason: str) -> None:
    changed = bytearray(payload)
    changed[offset] ^= 0xFF
    with pytest.raises(PayloadError) as caught:
        read_payload(changed)
    assert caught.value.reason == reason


# per field another value that a payload could have
OTHERS: dict[str, Any] = {
    "codec": CodecId.PACKKV,
    "kv_dtype": KVDtype.FLOAT16,
    "tokens": 8,
    "sinks": 3,
    "shape": CacheShape(1, 2, 8),
    "first_head": 0,
    "root_hash": bytes(32),
    "chain_hash": bytes(32),
    "codec_digest": bytes(32),
    "profile_digest": bytes(32),
    "first_token": 64,
}


@pytest.mark.parametrize("field", [field.name for field in fields(Expectation)])
def test_a_payload_of_another_identity_is_refused(field: str) -> None:
    data = write_payload(HEADER, [bytes(16)] * 2)
    own = {name: getattr(HEADER, name) for name in OTHERS}
    read_payload(data, Expectation(**own))
    with pytest.raises(PayloadError) as caught:
        read_payload(data, Expectation(**own | {field: OTHERS[field]}))
    assert caught.value.reason == "identity"
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 65}, "tokens 65"),
        ({"tokens": 0}, "tokens 0"),
        ({"sinks": 8}, "sinks 8"),
        ({"head_dim": 10}, "head_dim 10"),
        ({"head_dim": 516}, "head_dim 516"),
        ({"layers": 0}, "layers 0"),
        ({"root_hash": bytes(31)}, "root_hash"),
        ({"compute_ms": -1.0}, "compute_ms -1.0"),
        ({"compute_ms": 65_505.0}, "compute_ms 65505.0"),
        ({"compute_ms": float("nan")}, "compute_ms nan"),
        ({"compute_ms": float("inf")}, "compute_ms inf"),
        ({"codec": CodecId.RAW}, "sinks 4"),
        ({"codec": CodecId.RAW, "sinks": 0, "form": Form.COLD}, "cold form"),
        ({"preamble_bytes": 16}, "preamble of 16 bytes, not of 0 … 0"),
        ({"form": Form.COLD, "preamble_bytes": 24}, "whole 16s"),
        ({"form": Form.COLD, "preamble_bytes": -16}, "preamble of -16 bytes"),
        ({"form": Form.COLD, "preamble_bytes": 5136}, "not of 0 … 5120"),
        ({"form": Form.COLD, "preamble_bytes": 16}, "0 bytes of preamble, not 16"),
    ],
)
def test_a_header_beyond_its_limits_is_neither_written_nor_read(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        write_payload(replace(HEADER, **change), [bytes(16)] * 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("sections", [[bytes(16)], [bytes(16), bytes(8)], [bytes(16), b""]])
def test_sections_of_a_wrong_number_or_length_are_not_written(sections: list[bytes]) -> None:
    with pytest.raises(InvalidInput):
        write_payload(HEADER, sections)


def test_a_payload_is_read_from_any_alignment() -> None:
    shape = CacheShape(1, 1, 8)
    keys, values = random_kv(shape, 64)
    data = encode_payloads(keys, values, HybridConfig(), random_profile(shape))[0]
    shifted = memoryview(b"x" + bytes(data))[1:]
    from packkv_kernels.compress import decode_block

    found = decode_block(read_payload(shifted), HybridConfig(), random_profile(shape))
    wanted = decode_block(read_payload(data), HybridConfig(), random_profile(shape))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
