"""Stores that hang, fall silent or are killed: every path, against a real store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from packkv.client import Miss
from packkv.errors import CircuitOpen, DeadlineExceeded, StoreUnavailable
from tests.clients.client.paths.conftest import Connect, has_all, named, names, takes, until
from tests.clients.conftest import StoreProcess
from tests.store.conftest import build_prefix


def test_a_store_that_hangs_is_waited_for_until_each_calls_own_deadline(
    own_store: StoreProcess, connect: Connect, path: str
) -> None:
    client = connect(own_store.target, breaker_failures=100, retries=0)
    own_store.pause()
    with ThreadPoolExecutor(1) as threads:
        try:
            patient = threads.submit(client.get, [bytes(32)], deadline_s=60.0)
            # the streams of gRPC are always open
            until(lambda: path == "grpc" or client._paths._opening.locked())
            for call in (
                lambda: client.get([bytes(32)], deadline_s=0.2),
                lambda: client.put([(bytes(32), bytes(1000))], deadline_s=0.2),
            ):
                with pytest.raises((DeadlineExceeded, StoreUnavailable)):
                    call()
            assert not patient.done()
        finally:
            own_store.resume()
        assert patient.result(60)[0].miss is Miss.ABSENT
    # and so it is once the path is open
    prefix = build_prefix("a", 2)
    until(lambda: takes(client, prefix))
    own_store.pause()
    try:
        for call in (
            lambda: client.get(names(prefix), deadline_s=0.3),
            lambda: client.put(named(prefix), deadline_s=0.3),
        ):
            with pytest.raises((DeadlineExceeded, StoreUnavailable)):
                call()
    finally:
        own_store.resume()
    until(lambda: has_all(client, prefix))


def test_a_store_that_is_silent_is_left_alone_and_asked_again(
    own_store: StoreProcess, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = build_prefix("a", 2)
    client = connect(own_store.target, retries=0, breaker_pause_s=30.0, breaker_max_pause_s=60.0)
    now = 100.0
    monkeypatch.setattr(client.breaker, "_clock", lambda: now)
    client.put(named(prefix))
    own_store.pause()
    try:
        for _ in range(client.config.breaker_failures):
            with pytest.raises((DeadlineExceeded, StoreUnavailable)):
                client.get(names(prefix), deadline_s=0.2)
        # whatever is asked now costs nothing
        for call in (
            lambda: client.get(names(prefix), deadline_s=30.0),
            lambda: client.put(named(prefix), deadline_s=30.0),
            lambda: client.match(names(prefix), deadline_s=30.0),
        ):
            with pytest.raises(CircuitOpen):
                call()
        # and it stays so while a try that is due fails as well
        now += 30.0
        assert client.breaker.admit() == 0.0
        client.breaker.failed()
        with pytest.raises(CircuitOpen):
            client.get(names(prefix))
    finally:
        own_store.resume()

    def is_back() -> bool:
        nonlocal now
        now += 60.0
        return has_all(client, prefix)

    until(is_back)
    assert client.breaker.is_closed


def test_a_store_that_is_killed_and_started_again_is_found_again(
    own_store: StoreProcess, connect: Connect
) -> None:
    prefix = build_prefix("a", 2)
    client = connect(own_store.target, breaker_failures=1000, retries=0)
    client.put(named(prefix))
    own_store.kill()
    with pytest.raises(StoreUnavailable):
        client.get(names(prefix))
    with pytest.raises(StoreUnavailable):
        client.put(named(prefix))
    own_store.start(own_store.target)
    until(lambda: has_all(client, prefix))
