"""Server and codec each read the head of a payload by themselves; they must never disagree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xxhash

from packkv_kernels.errors import PayloadError as CodecRefuses
from packkv_kernels.format.payload import read_payload
from packkv_store.block import ChainHash, Span, verify_payload
from packkv_store.errors import PayloadError as ServerRefuses

GOLDEN = Path(__file__).parents[1] / "kernels" / "golden"
FILES = sorted(GOLDEN.glob("*.payload"))


def server_refuses(data: bytes | bytearray, chain_hash: bytes) -> bool:
    try:
        verify_payload(memoryview(data), ChainHash(chain_hash))
    except ServerRefuses:
        return True
    return False


def codec_refuses(data: bytes | bytearray) -> bool:
    try:
        read_payload(data)
    except CodecRefuses:
        return True
    return False


def test_there_are_golden_files() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_both_read_the_same_head(path: Path) -> None:
    data = path.read_bytes()
    payload = read_payload(data)
    header = payload.header
    head = verify_payload(memoryview(data), ChainHash(header.chain_hash))
    for name in ("tokens", "layers", "first_head", "heads", "root_hash", "first_token"):
        assert getattr(head, name) == getattr(header, name), name
    assert head.head_length == header.head_length
    assert head.payload_length == len(data)
    starts = payload.sections[:, 0].tolist()
    assert head.bounds.tolist() == [*starts, len(data)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_layer_run_is_the_sections_of_its_heads(path: Path) -> None:
    payload = read_payload(path.read_bytes())
    header = payload.header
    head = verify_payload(payload.data, ChainHash(header.chain_hash))
    for layer in range(header.layers):
        for kv_head in range(header.heads):
            start, end = head.layer_run(layer, Span(header.first_head + kv_head, 1))
            assert payload.data[start:end] == payload.section(layer, kv_head)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_both_refuse_a_bit_flipped_in_any_byte(path: Path) -> None:
    sound = path.read_bytes()
    chain_hash = read_payload(sound).header.chain_hash
    accepted = []
    for at in range(len(sound)):
        data = bytearray(sound)
        data[at] ^= 1 << at % 8
        if not (server_refuses(data, chain_hash) and codec_refuses(data)):
            accepted.append(at)
    assert accepted == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_both_refuse_every_other_length(path: Path) -> None:
    sound = path.read_bytes()
    chain_hash = read_payload(sound).header.chain_hash
    others = [sound[:length] for length in range(0, len(sound), 7)]
    others += [sound + bytes(more) for more in (1, 16, 4096)]
    assert all(server_refuses(data, chain_hash) and codec_refuses(data) for data in others)


def test_both_read_what_a_block_took_to_compute() -> None:
    sound = read_payload(GOLDEN.joinpath("hybrid-partial.payload").read_bytes())
    chain_hash, head_length = sound.header.chain_hash, sound.header.head_length
    data = bytearray(sound.data)
    # every exponent of a half-precision number, with either sign
    for bits in range(0, 1 << 16, 1 << 9):
        data[26:28], data[176:192] = bits.to_bytes(2, "little"), bytes(16)
        data[176:192] = xxhash.xxh3_128_digest(bytes(data[:head_length]))
        refused = server_refuses(data, chain_hash)
        assert refused == codec_refuses(data) == (bits >= 0x7C00 and bits != 0x8000)
        if not refused:
            head = verify_payload(memoryview(data), ChainHash(chain_hash))
            assert head.compute_ms == read_payload(data).header.compute_ms
            assert head.compute_ms == np.uint16(bits).view(np.float16)


def test_the_server_refuses_another_blocks_payload() -> None:
    assert server_refuses(FILES[0].read_bytes(), bytes(32))
