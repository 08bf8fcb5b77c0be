"""A worker among troubles: no store, a full queue, clients that leave, and its own end."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import openai
import pytest
from openai import OpenAI
from openai.types import Completion

from packkv.client import Client
from packkv.demo.processes import Child, StoreProcess

Wait = Callable[[Callable[[], object]], None]

KEY = "sesame-two"
SETTINGS: dict[str, Any] = {"model": "tiny", "temperature": 1, "seed": 7}
# more tokens than fit into the time of any test
ENDLESS: dict[str, Any] = {**SETTINGS, "max_tokens": 8000, "stream": True}


def text_of(client: OpenAI, prompt: str, tokens: int = 20) -> str:
    answer: Completion = client.completions.create(prompt=prompt, max_tokens=tokens, **SETTINGS)
    return answer.choices[0].text


def refusal(worker: Any, path: str, key: str = "none") -> tuple[int, dict[str, Any]]:
    with pytest.raises(HTTPError) as refused:
        worker.get(path, key)
    with refused.value as reply:
        return reply.code, json.loads(reply.read())


def test_a_worker_says_that_it_lives_is_ready_and_what_it_did(asked: OpenAI, first: Any) -> None:
    assert json.loads(first.get("/health")) == {"alive": True}
    assert json.loads(first.get("/ready")) == {"ready": True}
    names = ("generated_tokens_total", "first_token_seconds_count", "inter_token_seconds_count")
    before = [first.metric(name) for name in names]
    text_of(asked, "once", 20)
    after = [first.metric(name) for name in names]
    assert [new - old for new, old in zip(after, before, strict=True)] == [20, 1, 19]
    assert first.metric('requests_total{outcome="ok"}') >= 1
    refused = 'requests_total{outcome="refused"}'
    before_refusal = first.metric(refused)
    with pytest.raises(openai.NotFoundError):
        asked.completions.create(model="huge", prompt="x")
    assert first.metric(refused) == before_refusal + 1


def test_a_client_that_leaves_a_stream_ends_its_answer(
    asked: OpenAI, first: Any, eventually: Wait
) -> None:
    cancelled = 'requests_total{outcome="cancelled"}'
    before = first.metric(cancelled)
    stream = asked.completions.create(prompt="once", **ENDLESS)
    next(iter(stream))
    eventually(lambda: first.metric("running_requests") == 1)
    stream.close()
    eventually(lambda: first.metric(cancelled) == before + 1)
    eventually(lambda: first.metric("running_requests") == 0)


def test_a_client_that_waits_no_longer_ends_its_answer(first: Any, eventually: Wait) -> None:
    cancelled = 'requests_total{outcome="cancelled"}'
    before = first.metric(cancelled)
    with first.client(timeout=0.5) as impatient, pytest.raises(openai.APITimeoutError):
        impatient.completions.create(prompt="once", **{**ENDLESS, "stream": False})
    eventually(lambda: first.metric(cancelled) == before + 1)


def test_without_a_store_the_worker_computes(narrow: Any) -> None:
    with narrow.client(api_key=KEY) as client:
        texts = [text_of(client, "no store " * 30) for _ in range(2)]
    assert texts[0] == texts[1]
    # nobody is there, and the worker says so
    assert narrow.metric('store_misses_total{reason="unavailable"}', KEY) >= 1
    assert json.loads(narrow.get("/ready")) == {"ready": True}


def test_only_who_has_a_key_may_ask(narrow: Any) -> None:
    for key in ("sesame", "# who may ask", ""):
        with (
            narrow.client(api_key=key or "none") as stranger,
            pytest.raises(openai.AuthenticationError, match="API key") as refused,
        ):
            text_of(stranger, "x")
        assert refused.value.code == "invalid_api_key"
    assert refusal(narrow, "/metrics")[0] == 401
    with narrow.client(api_key="sesame-one") as client:
        assert [model.id for model in client.models.list()] == ["tiny"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes keys with openssl")
def test_nobody_is_heard_in_plaintext_where_there_is_a_certificate(narrow: Any) -> None:
    assert narrow.url.startswith("https://")
    plain = OpenAI(
        base_url=narrow.url.replace("https", "http") + "/v1", api_key=KEY, max_retries=0, timeout=60
    )
    with plain, pytest.raises(openai.APIConnectionError):
        plain.models.list()
    stranger = OpenAI(base_url=f"{narrow.url}/v1", api_key=KEY, max_retries=0, timeout=60)
    with stranger, pytest.raises(openai.APIConnectionError) as refused:
        stranger.models.list()
    assert "certificate" in str(refused.value.__cause__).lower()


def test_a_body_that_is_too_large_is_not_read(narrow: Any) -> None:
    with narrow.client(api_key=KEY) as client:
        # the server answers and hangs up, perhaps while the client still sends
        with pytest.raises((openai.APIStatusError, openai.APIConnectionError)) as refused:
            text_of(client, "x" * (2 << 20))
        if isinstance(refused.value, openai.APIStatusError):
            assert refused.value.status_code == 413
            assert "1048576 bytes" in refused.value.message
        text_of(client, "x")


async def test_a_full_queue_says_when_to_come_back_and_time_runs_out(
    narrow: Any, eventually: Wait
) -> None:
    async with narrow.async_client(api_key=KEY) as client:
        running = await client.completions.create(prompt="once", **ENDLESS)
        await anext(running)
        waiting = asyncio.create_task(client.completions.create(prompt="twice", **ENDLESS))
        await asyncio.to_thread(eventually, lambda: narrow.metric("waiting_requests", KEY) == 1)
        with pytest.raises(openai.RateLimitError, match="1 requests wait already") as refused:
            await client.completions.create(prompt="thrice", **ENDLESS)
        assert refused.value.response.headers["retry-after"] == "1"
        # the one that runs has 5 s, and ends in the middle of its stream
        with pytest.raises(openai.APIError, match="not complete after 5 s"):
            async for _ in running:
                pass
        # the one behind it has hardly any left: before or after its first token, it is told so
        with pytest.raises(openai.APIError, match="not complete after 5 s"):
            async for _ in await waiting:
                pass


def test_a_store_that_dies_in_the_middle_changes_no_answer(
    workers: Any, asked: OpenAI, mortal_store: StoreProcess, eventually: Wait
) -> None:
    robbed = workers["robbed"].ready()
    prompts = [f"{topic} " * 40 for topic in ("before", "during", "after")]
    wanted = [text_of(asked, prompt, 100) for prompt in prompts]
    with robbed.client() as client:
        assert text_of(client, prompts[0], 100) == wanted[0]
        eventually(lambda: robbed.metric("store_published_blocks_total") >= 3)
        stream = iter(
            client.completions.create(prompt=prompts[1], max_tokens=100, stream=True, **SETTINGS)
        )
        text = next(stream).choices[0].text
        mortal_store.process.kill()
        mortal_store.process.wait()
        text += "".join(part.choices[0].text for part in stream)
        assert text == wanted[1]
        assert text_of(client, prompts[2], 100) == wanted[2]
        # what is in this worker's own pages needs no store
        again = client.completions.create(prompt=prompts[0], max_tokens=1, **SETTINGS)
        assert again.usage is not None
        assert again.usage.prompt_tokens_details is not None
        assert again.usage.prompt_tokens_details.cached_tokens == 256
    assert robbed.metric('store_misses_total{reason="unavailable"}') >= 1


def test_a_worker_that_leaves_finishes_and_publishes(
    workers: Any, worker_store: StoreProcess, eventually: Wait
) -> None:
    leaving = workers["leaving"].ready()
    with Client(worker_store.address) as store, leaving.client() as client:
        before = store.stats().blocks
        stream = client.completions.create(
            prompt="the last words " * 20, max_tokens=500, stream=True, **SETTINGS
        )
        parts = iter(stream)
        next(parts)
        leaving.process.send_signal(signal.SIGTERM)
        eventually(lambda: _is_refused(leaving))
        with pytest.raises(openai.InternalServerError, match="leaving") as refused:
            text_of(client, "x")
        assert refused.value.status_code == 503
        assert refused.value.response.headers["retry-after"] == "5"
        reasons = [part.choices[0].finish_reason for part in parts]
        assert reasons[-1] == "length"
        assert leaving.process.wait(60) == 0
        # 300 tokens asked, 500 answered; the last of them was never computed
        assert store.stats().blocks - before == 799 // 64


def _is_refused(worker: Any) -> bool:
    try:
        worker.get("/ready")
    except HTTPError as error:
        with error:
            return error.code == 503
    return False


def test_a_worker_can_be_stopped_while_it_loads(tmp_path: Path, tiny_model: Path) -> None:
    command = [sys.executable, "-c", "from packkv.cli import main; main()", "worker", "--no-store"]
    command += ["--model", str(tiny_model), "--listen", "127.0.0.1:0"]
    with Child("loading", command, tmp_path) as worker:
        assert worker.hear(120).startswith("packkv-worker listening on ")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(60) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--listen", "0.0.0.0:0"], "give --api-key-file"),
        (["--listen", "nowhere"], "is not HOST:PORT"),
        (["--listen", "127.0.0.1:0", "--codec", "gzip"], "gzip"),
        (["--listen", "127.0.0.1:0", "--device", "abacus"], "write cpu"),
        (["--listen", "127.0.0.1:0", "--api-key-file", "/dev/null"], "has no key"),
        (["--listen", "127.0.0.1:0", "--model", "/nowhere"], "no model at /nowhere"),
        (["--listen", "127.0.0.1:0", "--store", "far:1"], "plaintext"),
        (["--listen", "127.0.0.1:0", "--tls-cert", "no.pem"], "go together"),
    ],
)
def test_a_wrong_setting_ends_the_start_in_one_line(
    tmp_path: Path, options: list[str], says: str
) -> None:
    command = [sys.executable, "-c", "from packkv.cli import main; main()", "--token", "t"]
    done = subprocess.run(
        [*command, "worker", *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
