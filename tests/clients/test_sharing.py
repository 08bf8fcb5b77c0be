"""Who shares with whom, end to end through a real store: equals do, all others never."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from packkv.client import Client
from packkv.identity import rope_digest, weights_digest
from packkv.prefix_cache import codec_identity
from packkv_kernels.config import HybridConfig, RawConfig

if TYPE_CHECKING:
    from tests.clients.conftest import Worker

TOKENS = list(range(500, 500 + 64 * 2))
PROMPT = [*TOKENS, 1]
ROPE = {"rope_theta": 1e4, "max_position_embeddings": 8192}
OTHERS: dict[str, dict[str, Any]] = {
    "another model": {"model": "other/model"},
    "another weights revision": {"weights_digest": "aa" * 32},
    "a LoRA adapter": {"adapter_digest": "aa" * 32},
    "another dtype": {"kv_dtype": "bfloat16"},
    "a profile": {"profile_digest": "aa" * 32},
    "scaled RoPE": {"rope_digest": rope_digest(ROPE | {"rope_scaling": {"factor": 2.0}})},
    "another tenant": {"tenant_salt": "tenant-b"},
}


def load(client: Client, worker: Worker) -> int:
    with worker.prefixes(client) as prefixes:
        return prefixes.load(PROMPT).num_tokens


def publish(client: Client, worker: Worker) -> None:
    with worker.prefixes(client) as prefixes:
        assert prefixes.publish(TOKENS, worker.blocks(TOKENS)) == 2
        assert prefixes.flush(60)
        assert prefixes.counters.published_blocks == 2


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS.keys())
def test_workers_that_differ_never_share(
    client: Client, worker: Worker, change: dict[str, Any]
) -> None:
    other = worker.having(**change)
    publish(client, worker)
    assert load(client, worker) == 128
    assert load(client, other) == 0
    publish(client, other)
    assert load(client, worker) == load(client, other) == 128
    with worker.prefixes(client) as ours, other.prefixes(client) as theirs:
        for mine, yours in zip(
            ours.load(PROMPT).payloads, theirs.load(PROMPT).payloads, strict=True
        ):
            assert mine.header.root_hash == worker.namespace.root_hash()
            assert yours.header.root_hash == other.namespace.root_hash()


def test_two_lora_adapters_of_one_model_never_share(client: Client, worker: Worker) -> None:
    adapters = [worker.having(adapter_digest=digest * 32) for digest in ("aa", "bb")]
    publish(client, adapters[0])
    assert [load(client, adapter) for adapter in adapters] == [128, 0]


def test_two_codecs_never_share(client: Client, worker: Worker) -> None:
    settings = (RawConfig(), HybridConfig(delta=1.0), HybridConfig(delta=0.5))
    for index, codec in enumerate(settings):
        user = type(worker)(
            worker.having(codec=codec_identity(codec), profile_digest="cc" * 32).namespace,
            codec,
            worker.shape,
        )
        assert load(client, user) == 0, f"codec {index}"
        publish(client, user)
        assert load(client, user) == 128


def test_two_revisions_of_real_weights_never_share(
    client: Client, worker: Worker, tmp_path: Path
) -> None:
    values = np.ones((32, 32), np.float32)
    revisions = []
    for name in ("one", "two"):
        save_file({"weight": values}, str(tmp_path / f"{name}.safetensors"))
        revisions.append(
            worker.having(weights_digest=weights_digest(tmp_path / f"{name}.safetensors"))
        )
        # the header and the size stay the same
        values[31, 31] += 1e-6
    publish(client, revisions[0])
    assert [load(client, revision) for revision in revisions] == [128, 0]


def test_clearing_one_namespace_leaves_the_other(client: Client, worker: Worker) -> None:
    other = worker.having(model="other/model")
    publish(client, worker)
    publish(client, other)
    assert client.clear(worker.namespace.root_hash()).blocks == 2
    assert [load(client, worker), load(client, other)] == [0, 128]
