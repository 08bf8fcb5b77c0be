"""The head reader believes nothing."""

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from packkv_store.block import ChainHash, PayloadHead, Span, verify_payload
from packkv_store.errors import PayloadError
from tests.store.conftest import build_payload

GOOD = build_payload(b"g" * 32, b"r" * 32, layers=3, heads=2, first_head=4, first_token=128)
NAMES = b"g" * 32, b"r" * 32
NAME = ChainHash(GOOD.chain_hash)


def test_a_good_payload_says_what_it_holds() -> None:
    head = verify_payload(memoryview(GOOD.data), NAME)
    assert (head.layers, head.first_head, head.heads) == (3, 4, 2)
    assert (head.tokens, head.first_token) == (64, 128)
    assert head.payload_length == len(GOOD.data)
    assert head.root_hash == GOOD.root_hash
    assert head.bounds[0] == head.head_length == GOOD.head_length
    assert head.bounds[-1] == len(GOOD.data)


def test_the_head_can_be_read_without_the_sections() -> None:
    head = PayloadHead.read(memoryview(GOOD.data[: GOOD.head_length]))
    assert head.payload_length == len(GOOD.data)
    with pytest.raises(PayloadError, match="bytes present of the head"):
        PayloadHead.read(memoryview(GOOD.data[: GOOD.head_length - 1]))


def test_runs_of_a_layer_are_where_the_table_says() -> None:
    head = PayloadHead.read(memoryview(GOOD.data))
    for layer in range(3):
        start, end = head.layer_run(layer, Span())
        assert (start, end) == (head.bounds[2 * layer], head.bounds[2 * layer + 2])
        first = head.layer_run(layer, Span(4, 1))
        second = head.layer_run(layer, Span(5, 1))
        assert (first[0], first[1], second[1]) == (start, second[0], end)


def test_a_run_is_verified_by_itself() -> None:
    data = memoryview(bytearray(GOOD.data))
    head = PayloadHead.read(data)
    start, end = head.layer_run(1, Span(5, 1))
    head.verify_layer_run(data, 1, Span(5, 1), data[start:end])
    data[end - 1] ^= 1
    with pytest.raises(PayloadError):
        head.verify_layer_run(data, 1, Span(5, 1), data[start:end])


@given(st.integers(0, len(GOOD.data) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(at: int, change: int) -> None:
    data = bytearray(GOOD.data)
    data[at] ^= change
    with pytest.raises(PayloadError):
        verify_payload(memoryview(data), NAME)


@given(st.integers(0, len(GOOD.data) - 1))
def test_any_shorter_payload_is_noticed(length: int) -> None:
    with pytest.raises(PayloadError):
        verify_payload(memoryview(GOOD.data)[:length], NAME)


@given(st.binary(max_size=600))
def test_noise_is_refused_and_nothing_else_happens(noise: bytes) -> None:
    for data in (noise, GOOD.data[:32] + noise, GOOD.data[:192] + noise):
        with pytest.raises(PayloadError):
            verify_payload(memoryview(data), NAME)


def sealed(data: bytearray, head_length: int) -> memoryview:
    """With the checksum that its head should have, whatever is in it."""
    data[176:192] = bytes(16)
    data[176:192] = xxhash.xxh3_128_digest(bytes(data[:head_length]))
    return memoryview(data)


COLD = build_payload(b"g" * 32, b"r" * 32, layers=3, heads=2, preamble_bytes=1008)


def test_a_cold_payload_has_its_preamble_in_the_head() -> None:
    head = verify_payload(memoryview(COLD.data), NAME)
    assert head.bounds[0] == head.head_length == COLD.head_length
    assert head.bounds[-1] == head.payload_length == len(COLD.data)
    for length in (COLD.head_length - 1, COLD.head_length - 1000):
        with pytest.raises(PayloadError, match="bytes present of the head"):
            PayloadHead.read(memoryview(COLD.data[:length]))


def test_the_longest_preamble_is_read_and_no_longer_one() -> None:
    longest = 4096 + 512 * 4 * 2
    verify_payload(memoryview(build_payload(*NAMES, preamble_bytes=longest).data), NAME)
    with pytest.raises(PayloadError, match=f"preamble length is {longest + 16}"):
        verify_payload(memoryview(build_payload(*NAMES, preamble_bytes=longest + 16).data), NAME)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (13, 0, "preamble length is 1008"),
        (13, 2, "form is 2"),
        (10, 1, "form is 1"),
        (27, 0x7C, "compute_ms is inf"),
        (27, 0x7E, "compute_ms is nan"),
        (27, 0xBC, "compute_ms is -1.0"),
        (28, 0xF8, "preamble length"),
        (28, 0xE0, "offset of section 0"),
        (30, 1, "preamble length"),
        (31, 0xFF, "preamble length"),
    ],
)
def test_a_form_that_contradicts_itself_is_refused(at: int, value: int, message: str) -> None:
    data = bytearray(COLD.data)
    data[at] = value
    shorter = at == 28 and value == 0xE0
    with pytest.raises(PayloadError, match=message):
        verify_payload(sealed(data, COLD.head_length - (16 if shorter else 0)), NAME)


@given(st.integers(192 + 24 * 6, COLD.head_length - 1), st.integers(1, 255))
def test_any_changed_byte_of_a_preamble_is_noticed(at: int, change: int) -> None:
    data = bytearray(COLD.data)
    data[at] ^= change
    with pytest.raises(PayloadError):
        verify_payload(memoryview(data), NAME)


@pytest.mark.parametrize("tokens", [1, 64])
def test_the_smallest_and_the_largest_block(tokens: int) -> None:
    for layers, heads in ((1, 1), (80, 16)):
        payload = build_payload(b"g" * 32, b"r" * 32, layers=layers, heads=heads, tokens=tokens)
        verify_payload(memoryview(payload.data), NAME)
