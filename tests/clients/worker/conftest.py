"""Real worker processes on a tiny random model, and real stores behind them."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client, DefaultHttpx2Client, OpenAI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from packkv.demo.processes import Child, StoreProcess
from tests.clients.conftest import StoreProcess as TokenStore

START_S = 280.0
CONTEXT = 16_384
# every answer ends: the tests read what it says, and nobody waits longer than this
REQUEST_S = 60.0
# of the store that asks for tokens
TENANTS = {"red": "red secret", "blue": "blue secret"}

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' and loop.first %}"
    "{{ raise_exception('the assistant cannot begin') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class WorkerServer(Child):
    """A `packkv worker` on a free port; `ready` before the first question."""

    def __init__(
        self,
        name: str,
        folder: Path,
        model: Path,
        *options: str,
        ca: Path | None = None,
        before: tuple[str, ...] = (),
    ) -> None:
        command = [sys.executable, "-c", "from packkv.cli import main; main()", *before]
        command += ["worker", "--listen", "127.0.0.1:0"]
        command += ["--model", str(model), "--model-name", "tiny", *options]
        super().__init__(name, command, folder)
        self.url = ""
        self.ca = ca
        # of this certificate alone, if the worker has one
        self.tls = None if ca is None else ssl.create_default_context(cafile=str(ca))
        self._ready = self._failed = False

    def listening(self) -> str:
        if not self.url:
            self.url = self.hear(START_S).removeprefix("packkv-worker listening on ")
        return self.url

    def ready(self) -> WorkerServer:
        if not self._ready:
            # one that did not start is not waited for again by every test
            assert not self._failed, f"{self.name} did not start"
            self._failed = True
            self.listening()
            assert self.hear(START_S).startswith("packkv-worker ready: ")
            self._ready, self._failed = True, False
        return self

    def client(self, **settings: Any) -> OpenAI:
        http = DefaultHttpx2Client(verify=self.tls or True)
        return OpenAI(**self._settings(settings), http_client=http)

    def async_client(self, **settings: Any) -> AsyncOpenAI:
        http = DefaultAsyncHttpx2Client(verify=self.tls or True)
        return AsyncOpenAI(**self._settings(settings), http_client=http)

    def _settings(self, changed: dict[str, Any]) -> dict[str, Any]:
        defaults = {"api_key": "none", "max_retries": 0, "timeout": REQUEST_S}
        return {"base_url": f"{self.listening()}/v1", **defaults, **changed}

    def get(self, path: str, key: str = "none") -> bytes:
        """What a plain GET answers with.

        Raises:
            HTTPError: the status is not 200.
        """
        headers = {"authorization": f"Bearer {key}"}
        request = urllib.request.Request(self.listening() + path, headers=headers)
        with urllib.request.urlopen(request, timeout=REQUEST_S, context=self.tls) as reply:
            return bytes(reply.read())

    def metric(self, name: str, key: str = "none") -> float:
        """A sample of /metrics; 0 when it is not there."""
        text = self.get("/metrics", key).decode()
        found = re.search(rf"^{re.escape('packkv_worker_' + name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for loopback, and its key."""
    certificate, key = folder / "tls.pem", folder / "tls.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "1"]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return certificate, key


def eventually(condition: Callable[[], object]) -> None:
    """Wait until a condition holds that another process brings about."""
    ends_at = time.monotonic() + REQUEST_S
    while not condition():
        assert time.monotonic() < ends_at, "the condition never held"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 260 tokens: one for every byte, and special ones; it never ends itself."""
    folder = tmp_path_factory.mktemp("tiny")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|im_start|>", "<|im_end|>"]
    vocabulary = {token: number for number, token in enumerate([*alphabet, *special])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=260,
        max_position_embeddings=CONTEXT,
        # large enough for the past to matter to the logits
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def unused_address() -> Iterator[str]:
    """Where no store is: the port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="session")
def worker_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    with StoreProcess(tmp_path_factory.mktemp("store"), ram_bytes="64MiB") as store:
        yield store


@pytest.fixture(scope="session")
def mortal_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    """A store for one test to kill."""
    with StoreProcess(tmp_path_factory.mktemp("mortal"), ram_bytes="64MiB") as store:
        yield store


@pytest.fixture(scope="session")
def apart_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenStore]:
    """A store that shares nothing with the others and wants to know who asks."""
    folder = tmp_path_factory.mktemp("apart")
    tenants = {
        name: {"token_sha256": sha256(token.encode()).hexdigest(), "admin": True}
        for name, token in TENANTS.items()
    }
    (folder / "tokens.json").write_text(json.dumps({"tenants": tenants}))
    flags = ("--tokens-file", str(folder / "tokens.json"), "--grace-seconds", "1")
    store = TokenStore(folder / "data", flags).start()
    yield store
    store.kill()


@pytest.fixture(scope="session")
def workers(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    worker_store: StoreProcess,
    mortal_store: StoreProcess,
    apart_store: TokenStore,
    unused_address: str,
) -> Iterator[dict[str, WorkerServer]]:
    """All workers of these tests. They start side by side: most of it is importing libraries."""
    folder = tmp_path_factory.mktemp("workers")
    keys = folder / "keys"
    keys.write_text("# who may ask\nsesame-one\n\n  sesame-two\n")
    certificate = make_certificate(folder) if shutil.which("openssl") else None
    tls: tuple[str, ...] = ()
    if certificate is not None:
        tls = ("--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1]))
    shared = ("--codec", "raw", "--store", worker_store.address)
    options = {
        "first": shared,
        "second": shared,
        "leaving": shared,
        "apart": ("--codec", "raw", "--store", apart_store.target),
        "robbed": ("--codec", "raw", "--store", mortal_store.address),
        "narrow": (
            *("--codec", "raw", "--store", unused_address, "--api-key-file", str(keys)),
            *("--max-running", "1", "--max-waiting", "1", "--max-context", "9000"),
            *("--request-seconds", "5", "--max-body-mib", "1"),
            *tls,
        ),
    }
    os.environ["OMP_NUM_THREADS"] = "1"
    started: dict[str, WorkerServer] = {}
    try:
        for name, settings in options.items():
            ca = certificate[0] if certificate is not None and name == "narrow" else None
            before = ("--token", TENANTS["red"]) if name == "apart" else ()
            started[name] = WorkerServer(name, folder, tiny_model, *settings, ca=ca, before=before)
        yield started
    finally:
        del os.environ["OMP_NUM_THREADS"]
        # leaving takes each of them two seconds: all at one time
        for worker in started.values():
            worker.process.terminate()
        for worker in started.values():
            worker.stop()


@pytest.fixture
def first(workers: dict[str, WorkerServer]) -> WorkerServer:
    return workers["first"].ready()


@pytest.fixture
def second(workers: dict[str, WorkerServer]) -> WorkerServer:
    return workers["second"].ready()


@pytest.fixture
def narrow(workers: dict[str, WorkerServer]) -> WorkerServer:
    """One answer at a time, one that waits, 5 s each; API keys, TLS, no store where it looks."""
    return workers["narrow"].ready()


@pytest.fixture
def asked(first: WorkerServer) -> Iterator[OpenAI]:
    with first.client() as client:
        yield client


@pytest.fixture(name="eventually", scope="session")
def _eventually() -> Callable[[Callable[[], object]], None]:
    """Waits until a condition holds that another process brings about."""
    return eventually
