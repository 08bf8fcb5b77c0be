"""Stores that hang, fall silent or are killed: every path, against a real store."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from packkv.client import Miss
from packkv.errors import CircuitOpen, DeadlineExceeded, StoreUnavailable
from tests.clients.client.paths.conftest import Connect, has_all, named, names, payloads, until
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
    client.put(named(prefix))
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
    assert payloads(client.get(names(prefix))) == [b.data for b in prefix]


def test_a_store_that_is_silent_is_left_alone_and_asked_again(
    own_store: StoreProcess, connect: Connect
) -> None:
    prefix = build_prefix("a", 2)
    client = connect(own_store.target, retries=0, breaker_pause_s=0.2, breaker_max_pause_s=0.4)
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
        until(lambda: client.breaker.admit() == 0.0)
        client.breaker.failed()
        with pytest.raises(CircuitOpen):
            client.get(names(prefix))
    finally:
        own_store.resume()
    until(lambda: has_all(client, prefix))
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
    found = threading.Event()
    for _ in range(200):
        try:
            got = client.get(names(prefix))
        except StoreUnavailable:
            found.wait(0.05)
        else:
            break
    assert payloads(got) == [b.data for b in prefix]
