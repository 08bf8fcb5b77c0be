"""docs/worker.md as it stands, on the model that it names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from packkv.demo.processes import Child, StoreProcess

STORE, API = "127.0.0.1:7437", "127.0.0.1:8000"
START_S = 200.0


def blocks(repository: Path, language: str) -> list[str]:
    text = (repository / "docs" / "worker.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def address(
    repository: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where the worker of the document's first block listens."""
    folder = tmp_path_factory.mktemp("document")
    command = re.search(r"^packkv (worker .*)", blocks(repository, "")[0], re.MULTILINE)
    assert command is not None
    with StoreProcess(folder, ram_bytes="64MiB") as store:
        words = command[1].replace(STORE, store.address).replace(API, "127.0.0.1:0").split()
        python = [sys.executable, "-c", "from packkv.cli import main; main()"]
        with Child("worker", [*python, *words], folder) as worker:
            url = worker.hear(START_S).removeprefix("packkv-worker listening on http://")
            assert worker.hear(START_S).startswith("packkv-worker ready: SmolLM2-135M-Instruct")
            yield url


@pytest.mark.timeout(900)
def test_the_examples_say_what_the_document_says(repository: Path, address: str) -> None:
    said = [run(code, address) for code in blocks(repository, "python")]
    conversation, stream, salted = said
    counts = [int(count) for count in re.findall(r"not computed: (\d+) tokens", conversation)]
    assert counts[0] == 0
    # the manual has more than one block, and full blocks are shared
    assert counts[1] >= 64
    assert counts[1] % 64 == 0
    assert "Paris" in stream
    assert "not computed: 0 tokens" in salted
    # the salt of the example is its own: the second time its blocks are there
    assert "not computed: 0 tokens" not in run(blocks(repository, "python")[2], address)


def test_an_answer_ends_where_the_model_ends_it(address: str) -> None:
    with OpenAI(base_url=f"http://{address}/v1", api_key="none") as client:
        model = client.models.list().data[0].id
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "What is 2 + 2? Answer in one word."}],
            temperature=0,
            max_tokens=60,
        )
    assert answer.choices[0].finish_reason == "stop"
    assert "<|im_end|>" not in (answer.choices[0].message.content or "")


def test_characters_of_several_tokens_come_whole(address: str) -> None:
    with OpenAI(base_url=f"http://{address}/v1", api_key="none") as client:
        model = client.models.list().data[0].id
        stream = client.completions.create(
            model=model,
            prompt="Repeat: 🌟🦙🌟🦙🌟🦙🌟🦙🌟🦙🌟🦙",
            temperature=0,
            max_tokens=14,
            stream=True,
            stream_options={"include_usage": True},
        )
        parts = list(stream)
    texts = [part.choices[0].text for part in parts if part.choices]
    usage = parts[-1].usage
    assert usage is not None
    # the last may be cut off by the length; none before it is
    assert not any("\ufffd" in text for text in texts[:-2])
    assert any(character in "".join(texts) for character in "🌟🦙")
    # fewer pieces than tokens: some tokens alone are no characters
    assert len([text for text in texts if text]) < usage.completion_tokens


def run(code: str, address: str) -> str:
    assert API in code
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code.replace(API, address)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
