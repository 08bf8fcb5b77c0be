"""A real router before workers that refuse, break off, hang and go."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.clients.router.conftest import (
    Answering,
    PuppetWorker,
    RouterProcess,
    eventually,
)

PATH = "/v1/completions"
NUMBERS = count()


@pytest.fixture
def http(router: RouterProcess) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=router.url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
def puppets(all_puppets: list[PuppetWorker], http: httpx2.Client) -> list[PuppetWorker]:
    """All in order, and known to be ready."""
    for puppet in all_puppets:
        puppet.reset()
    eventually(lambda: ups(http) == 3, "the router finds every worker ready")
    return all_puppets


def samples(http: httpx2.Client, name: str) -> dict[str, float]:
    lines = http.get("/metrics").text.splitlines()
    found = [line.rsplit(" ", 1) for line in lines if line.startswith(f"packkv_router_{name}")]
    return {key: float(value) for key, value in found}


def ups(http: httpx2.Client) -> float:
    return sum(samples(http, "worker_up").values())


def unheard_of(words: int = 10) -> str:
    """A prompt of which no worker has a block."""
    return " ".join(f"{next(NUMBERS)}" for _ in range(words))


def ask(http: httpx2.Client, prompt: str | None = None, **fields: Any) -> httpx2.Response:
    return http.post(PATH, json={"prompt": prompt or unheard_of(), **fields})


def asked(puppets: list[PuppetWorker]) -> list[int]:
    return [len(puppet.asked) for puppet in puppets]


def test_an_answer_comes_back_as_the_worker_gave_it(
    http: httpx2.Client, puppets: list[PuppetWorker]
) -> None:
    reply = http.post(PATH, json={"prompt": "a b"}, headers={"authorization": "Bearer k"})
    number = int(reply.headers["x-packkv-worker"])
    assert reply.json() == {"text": f"answer of {number}"}
    assert puppets[number].asked == [{"prompt": "a b"}]
    assert puppets[number].keys == ["Bearer k"]
    assert http.get("/v1/models").json() == {"path": "/v1/models"}
    assert http.get("/v1/models/a%3Fb/c").json() == {"path": "/v1/models/a%3Fb/c"}
    assert http.get("/ready").json() == {"ready": True}
    assert http.get("/health").json() == {"alive": True}


def test_a_prefix_goes_where_it_was_and_others_go_in_turn(
    http: httpx2.Client, puppets: list[PuppetWorker]
) -> None:
    conversations = [unheard_of() for _ in puppets]
    places = [ask(http, prompt).headers["x-packkv-worker"] for prompt in conversations]
    assert sorted(places) == ["0", "1", "2"]
    for turn in range(3):
        longer = [f"{prompt} and {turn}" for prompt in conversations]
        assert [ask(http, one).headers["x-packkv-worker"] for one in longer] == places


def test_a_worker_with_much_under_way_does_not_get_more_of_it(
    http: httpx2.Client, puppets: list[PuppetWorker]
) -> None:
    prefix = unheard_of(20)
    first = int(ask(http, prefix).headers["x-packkv-worker"])
    go_on = threading.Event()

    def when_told(self: Answering, _: dict[str, Any]) -> None:
        go_on.wait(60)
        self.reply({})

    for puppet in puppets:
        puppet.act = when_told
    threads = [threading.Thread(target=ask, args=(http, f"{prefix} {n}")) for n in range(12)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: sum(asked(puppets)) == 13, "all have been sent")
        counts = asked(puppets)
        # it has the prefix, so it gets more than the others and not all
        assert counts[first] == max(counts)
        assert min(counts) >= 1
    finally:
        go_on.set()
        for thread in threads:
            thread.join()


def break_off(self: Answering, _: dict[str, Any]) -> None:
    self.break_off()


def half_an_answer(self: Answering, _: dict[str, Any]) -> None:
    self.send_response(200)
    self.send_header("content-type", "application/json")
    self.send_header("content-length", "1000")
    self.end_headers()
    self.wfile.write(b"{")
    self.wfile.flush()
    self.break_off()


def head_of_a_stream(self: Answering, _: dict[str, Any]) -> None:
    self.begin_stream()
    self.wfile.flush()
    self.break_off()


def unready(self: Answering, _: dict[str, Any]) -> None:
    self.reply({"error": "leaving"}, 503)


def full(self: Answering, _: dict[str, Any]) -> None:
    self.reply({"error": "full"}, 429)


@pytest.mark.parametrize("act", [break_off, half_an_answer, head_of_a_stream, unready, full])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_while_nothing_has_been_sent_another_worker_answers(
    http: httpx2.Client,
    puppets: list[PuppetWorker],
    act: Callable[[Answering, dict[str, Any]], None],
    stream: bool,
) -> None:
    prompt = unheard_of()
    first = puppets[int(ask(http, prompt).headers["x-packkv-worker"])]
    first.act = act
    reply = ask(http, prompt, stream=stream)
    assert reply.status_code == 200
    assert int(reply.headers["x-packkv-worker"]) != first.number
    assert len(first.asked) == 2
    expected = "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: [DONE]\n\n" if stream else "answer of"
    assert expected in reply.text


def test_when_all_refuse_the_last_refusal_is_the_answer(
    http: httpx2.Client, puppets: list[PuppetWorker]
) -> None:
    for puppet in puppets:
        puppet.act = full
    reply = ask(http)
    assert (reply.status_code, reply.json()) == (429, {"error": "full"})
    assert reply.headers["retry-after"] == "7"
    assert asked(puppets) == [1, 1, 1]


def test_what_a_worker_finds_wrong_is_not_asked_of_others(
    http: httpx2.Client, puppets: list[PuppetWorker]
) -> None:
    for puppet in puppets:
        puppet.act = lambda self, _: self.reply({"error": "wrong"}, 400)
    assert ask(http).status_code == 400
    assert sum(asked(puppets)) == 1


def test_a_stream_that_breaks_says_so(http: httpx2.Client, puppets: list[PuppetWorker]) -> None:
    def begin_and_break(self: Answering, _: dict[str, Any]) -> None:
        self.begin_stream()
        self.piece(b"data: 0\n\ndata: half of")
        self.break_off()

    for puppet in puppets:
        puppet.act = begin_and_break
    events = ask(http, stream=True).text.split("\n\n")
    assert events[0] == "data: 0"
    assert (
        "the worker was lost" in json.loads(events[-3].removeprefix("data: "))["error"]["message"]
    )
    assert events[-2:] == ["data: [DONE]", ""]


def test_a_client_that_leaves_a_stream_ends_it_at_the_worker(
    http: httpx2.Client, puppets: list[PuppetWorker]
) -> None:
    left: list[int] = []

    def go_on(self: Answering, _: dict[str, Any]) -> None:
        self.begin_stream()
        try:
            while True:
                self.piece(b"data: again\n\n" * 100)
        except OSError:
            left.append(self.puppet.number)
            self.close_connection = True

    for puppet in puppets:
        puppet.act = go_on
    body = {"prompt": unheard_of(), "stream": True}
    with http.stream("POST", PATH, json=body) as reply:
        number = int(reply.headers["x-packkv-worker"])
        next(reply.iter_raw())
    eventually(lambda: left == [number], "the worker notices")
    eventually(lambda: not sum(samples(http, "under_way").values()), "nothing is under way")


def test_a_client_that_leaves_before_the_answer_ends_it_at_the_worker(
    router: RouterProcess, http: httpx2.Client, puppets: list[PuppetWorker]
) -> None:
    left: list[bytes] = []

    def wait_for_the_end(self: Answering, _: dict[str, Any]) -> None:
        self.connection.settimeout(30)
        left.append(self.connection.recv(1))
        self.close_connection = True

    for puppet in puppets:
        puppet.act = wait_for_the_end
    body = json.dumps({"prompt": unheard_of()}).encode()
    host, port = router.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        eventually(lambda: sum(asked(puppets)) == 1, "a worker is asked")
    eventually(lambda: left == [b""], "the worker notices")
    eventually(lambda: not sum(samples(http, "under_way").values()), "nothing is under way")


def test_a_worker_that_is_not_ready_gets_nothing_until_it_is(
    http: httpx2.Client, puppets: list[PuppetWorker]
) -> None:
    puppets[1].is_ready = False
    eventually(lambda: ups(http) == 2, "the router sees it")
    for _ in range(6):
        assert ask(http).status_code == 200
    assert asked(puppets)[1] == 0
    puppets[1].is_ready = True
    eventually(lambda: ups(http) == 3, "the router sees it again")
    for _ in range(6):
        ask(http)
    assert asked(puppets)[1] > 0


def test_without_any_worker_the_router_is_not_ready(
    http: httpx2.Client, puppets: list[PuppetWorker]
) -> None:
    for puppet in puppets:
        puppet.is_ready = False
    eventually(lambda: ups(http) == 0, "the router sees it")
    assert http.get("/ready").status_code == 503
    reply = ask(http)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "no_worker")
    assert reply.headers["retry-after"] == "5"
    assert http.get("/health").status_code == 200


def test_a_worker_that_does_not_name_blocks_in_time_is_not_waited_for(
    http: httpx2.Client, puppets: list[PuppetWorker]
) -> None:
    go_on = threading.Event()
    before = sum(samples(http, "unnamed_requests_total").values())
    for puppet in puppets:
        puppet.on_names = lambda: go_on.wait(60)
    assert ask(http).status_code == 200
    go_on.set()
    assert sum(samples(http, "unnamed_requests_total").values()) == before + 1


def test_a_path_that_is_unknown_is_refused(
    http: httpx2.Client, puppets: list[PuppetWorker]
) -> None:
    unknown = http.get("/v1/files")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["type"] == "invalid_request_error"
    assert http.get(PATH).status_code == 405
    assert sum(asked(puppets)) == 0


def test_a_router_that_leaves_finishes_what_is_under_way(
    puppets: list[PuppetWorker], tmp_path: Path
) -> None:
    go_on = threading.Event()

    def slowly(self: Answering, _: dict[str, Any]) -> None:
        self.begin_stream()
        self.piece(b"data: 0\n\n")
        go_on.wait(60)
        self.piece(b"data: 1\n\n")
        self.end_stream()

    puppets[0].act = slowly
    with RouterProcess("leaving", tmp_path, "--worker", puppets[0].url) as leaving:
        body = {"prompt": "x", "stream": True}
        with (
            httpx2.Client(base_url=leaving.url, timeout=30, trust_env=False) as http,
            http.stream("POST", PATH, json=body) as reply,
        ):
            pieces = reply.iter_raw()
            next(pieces)
            leaving.process.send_signal(signal.SIGTERM)
            eventually(lambda: http.get("/ready").status_code == 503, "it says that it leaves")
            assert ask(http).status_code == 503
            go_on.set()
            assert b"".join(pieces) == b"data: 1\n\n"
        assert leaving.process.wait(60) == 0
