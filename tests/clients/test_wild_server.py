"""Servers that lie, refuse or hang: a clear error in time, and nothing out of bounds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from packkv.client import Client, ClientConfig, PutStatus
from packkv.errors import (
    AccessDenied,
    CircuitOpen,
    ClientClosed,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    LimitExceeded,
    ProtocolViolation,
    StoreFailure,
    StoreUnavailable,
    Unsupported,
)
from packkv_protos.v1 import block_store_pb2 as pb

if TYPE_CHECKING:
    from tests.clients.conftest import PuppetStore

A, B = b"a" * 32, b"b" * 32


def frames_of(*frames: pb.GetFrame) -> Callable[[pb.GetRequest], Iterator[pb.GetFrame]]:
    return lambda request: iter(frames)


def answer(length: int) -> pb.GetFrame:
    return pb.GetFrame(blocks=[pb.BlockAnswer(block=0, length=length)])


def extent(**fields: Any) -> pb.GetFrame:
    return pb.GetFrame(extents=[pb.Extent(**fields)], data=b"x" * 4)


@pytest.mark.parametrize(
    "frames",
    [
        [answer(4), extent(block=9, offset=0, length=4)],
        [answer(4), extent(block=0, offset=2**63, length=4)],
        [answer(4), extent(block=0, offset=0, length=2**32 - 1)],
        [answer(8), extent(block=0, offset=0, length=4)],
        [answer(8), extent(block=0, offset=4, length=4)],
        [answer(2**40)],
        [],
    ],
    ids=[
        "wild block",
        "wild offset",
        "wild length",
        "missing end",
        "missing start",
        "huge",
        "none",
    ],
)
def test_wild_extents_end_as_a_protocol_violation(
    puppet: PuppetStore, puppet_client: Client, frames: list[pb.GetFrame]
) -> None:
    puppet.frames = frames_of(*frames)
    with pytest.raises(ProtocolViolation, match="Get"):
        puppet_client.get([A])


def test_more_bytes_than_the_caller_takes_are_refused_before_they_are_allocated(
    puppet: PuppetStore, puppet_client: Client
) -> None:
    puppet.blocks[A] = b"x" * 100
    assert bytes(puppet_client.get([A], max_bytes=100)[0].data or b"") == b"x" * 100
    with pytest.raises(ProtocolViolation, match="limit is 99"):
        puppet_client.get([A], max_bytes=99)


@pytest.mark.parametrize(
    "reply",
    [
        pb.MatchReply(blocks=3, lengths=[1, 1, 1]),
        pb.MatchReply(blocks=2, lengths=[1]),
        pb.MatchReply(blocks=1, lengths=[2**63]),
    ],
    ids=["more than asked", "lengths missing", "wild length"],
)
def test_a_match_that_contradicts_itself_is_refused(
    puppet: PuppetStore, puppet_client: Client, reply: pb.MatchReply
) -> None:
    puppet.match_reply = lambda request: reply
    with pytest.raises(ProtocolViolation, match="Match"):
        puppet_client.match([A, B])


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, LimitExceeded),
        (grpc.StatusCode.UNAUTHENTICATED, AccessDenied),
        (grpc.StatusCode.PERMISSION_DENIED, AccessDenied),
        (grpc.StatusCode.INTERNAL, StoreFailure),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_status_is_our_error_and_is_not_repeated(
    puppet: PuppetStore,
    puppet_client: Client,
    status: grpc.StatusCode,
    error: type[Exception],
) -> None:
    puppet.refusals = [status]
    with pytest.raises(error, match=f"Match at {puppet.target}: {status.name}: refused by"):
        puppet_client.match([A])
    assert puppet.calls == ["Match"]


def test_a_call_the_server_does_not_know_is_unsupported(puppet_client: Client) -> None:
    with pytest.raises(Unsupported):
        puppet_client.stats()


def test_what_nobody_answers_is_repeated_if_it_may_be(
    puppet: PuppetStore, puppet_client: Client
) -> None:
    puppet.blocks[A] = b"payload"
    puppet.refusals = [grpc.StatusCode.UNAVAILABLE] * 2
    assert puppet_client.match([A]).blocks == 1
    puppet.refusals = [grpc.StatusCode.UNAVAILABLE] * 3
    assert bytes(puppet_client.get([A])[0].data or b"") == b"payload"
    assert puppet.calls == ["Match"] * 3 + ["Get"] * 4
    puppet.refusals = [grpc.StatusCode.UNAVAILABLE]
    with pytest.raises(StoreUnavailable):
        puppet_client.put([(A, b"payload")])
    assert puppet.calls[-1:] == ["Put"]


def test_a_put_is_read_lazily_and_framed(puppet: PuppetStore, puppet_client: Client) -> None:
    first_seen = threading.Event()
    puppet.before_put = first_seen.set
    payload = bytes(range(256)) * 10_000

    def blocks() -> Iterator[tuple[bytes, bytes]]:
        yield A, payload
        assert first_seen.wait(60), "the second block was asked for before the call began"
        yield B, b""

    results = puppet_client.put(blocks())
    assert [(put.chain_hash, put.status) for put in results] == [
        (A, PutStatus.STORED),
        (B, PutStatus.STORED),
    ]
    assert puppet.blocks == {A: payload, B: b""}


def test_what_the_callers_iterable_raises_comes_out(puppet_client: Client) -> None:
    def blocks() -> Iterator[tuple[bytes, bytes]]:
        yield A, b"fine"
        raise LookupError("no second block")

    with pytest.raises(LookupError, match="no second block"):
        puppet_client.put(blocks())


def test_a_server_that_sends_half_and_hangs_is_left_at_the_deadline(
    puppet: PuppetStore, puppet_client: Client
) -> None:
    over = threading.Event()

    def half(request: pb.GetRequest) -> Iterator[pb.GetFrame]:
        yield answer(8)
        yield extent(block=0, offset=0, length=4)
        over.wait(60)

    puppet.frames = half
    with pytest.raises(DeadlineExceeded):
        puppet_client.get([A], deadline_s=0.3)
    over.set()


def test_the_circuit_opens_on_silence_and_closes_when_the_server_is_back(
    puppet: PuppetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ClientConfig(retries=0, breaker_failures=2, breaker_pause_s=0.6)
    now = 100.0
    with Client(puppet.target, config=config) as client:
        monkeypatch.setattr(client.breaker, "_clock", lambda: now)
        puppet.refusals = [grpc.StatusCode.UNAVAILABLE] * 2
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                client.match([A])
        with pytest.raises(CircuitOpen) as opened:
            client.match([A])
        assert opened.value.retry_in_s == pytest.approx(0.6)
        assert len(puppet.calls) == 2
        now += 0.65
        assert client.match([A]).blocks == 0
        assert client.breaker.is_closed


def test_an_answer_of_a_living_server_does_not_open_the_circuit(puppet: PuppetStore) -> None:
    with Client(puppet.target, config=ClientConfig(breaker_failures=1)) as client:
        puppet.refusals = [grpc.StatusCode.INVALID_ARGUMENT] * 3
        for _ in range(3):
            with pytest.raises(InvalidRequest):
                client.match([A])
        assert client.breaker.is_closed


def test_closing_ends_a_call_of_another_thread(puppet: PuppetStore) -> None:
    began, over = threading.Event(), threading.Event()

    def hang(request: pb.GetRequest) -> Iterator[pb.GetFrame]:
        began.set()
        over.wait(60)
        yield answer(8)

    puppet.frames = hang
    client = Client(puppet.target)
    raised: list[Exception] = []

    def get() -> None:
        try:
            client.get([A])
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=get)
    thread.start()
    assert began.wait(60)
    client.close()
    thread.join(60)
    over.set()
    assert [type(error) for error in raised] == [ClientClosed]
    with pytest.raises(ClientClosed):
        client.match([A])
    client.release(1, wait=False)


def test_the_token_goes_with_every_call_and_never_in_plaintext_to_another_host(
    puppet: PuppetStore,
) -> None:
    config = ClientConfig(token="secret-token")
    assert "secret" not in repr(config)
    with Client(puppet.target, config=config) as client:
        client.match([A])
    assert ("authorization", "Bearer secret-token") in puppet.metadata
    for target in (
        "10.0.0.1:7437",
        "store-1:7437",
        "dns:///localhost.evil.com:1",
        "[2001:db8::1]:1",
    ):
        with pytest.raises(ConfigError, match="plaintext"):
            Client(target, config=config)
        Client(target, config=ClientConfig(token="secret-token", insecure=True)).close()
        Client(target, config=ClientConfig(token="secret-token", tls=True)).close()
    for target in ("localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/tmp/x", "dns:///localhost:1"):
        Client(target, config=config).close()


@pytest.mark.parametrize(
    "fields",
    [
        {"deadline_s": 0},
        {"deadline_s": float("inf")},
        {"retries": -1},
        {"breaker_pause_s": 60.0},
        {"tls_cert": "x.pem"},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ClientConfig(**fields)
