"""The head reader believes nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packkv_store.block import ChainHash, PayloadHead, Span, verify_payload
from packkv_store.errors import PayloadError
from tests.store.conftest import build_payload

GOOD = build_payload(b"g" * 32, b"r" * 32, layers=3, heads=2, first_head=4, first_token=128)
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


@pytest.mark.parametrize("tokens", [1, 64])
def test_the_smallest_and_the_largest_block(tokens: int) -> None:
    for layers, heads in ((1, 1), (80, 16)):
        payload = build_payload(b"g" * 32, b"r" * 32, layers=layers, heads=heads, tokens=tokens)
        verify_payload(memoryview(payload.data), NAME)
