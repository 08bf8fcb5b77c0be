"""The transformers connector with its pages on a device: a GPU, or Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel

from packkv.integrations.hf import JoinedCache, PackedKVCache, PackKV, PackKVConfig
from packkv.integrations.hf.model import shape_of
from packkv_kernels.backend import available_backends
from packkv_kernels.config import BLOCK_TOKENS, CodecConfig
from packkv_kernels.format import read_payload
from packkv_kernels.testing import encode_payloads, random_kv, random_profile

pytest.importorskip("triton")

needs_triton = pytest.mark.skipif(
    "triton" not in available_backends(), reason="neither a GPU nor TRITON_INTERPRET=1"
)


def small_model(device: torch.device) -> PreTrainedModel:
    config = MistralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=50,
        initializer_range=0.3,
        sliding_window=60,
    )
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return model.to(device)


def follow(model: PreTrainedModel, backend: str | None) -> tuple[list[torch.Tensor], bytes]:
    """The logits of all that a cache goes through, and the payload of a page packed meanwhile."""
    ids = torch.randint(1, 50, (2, 90), generator=torch.manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :30] = 0
    ids, mask = ids.to(model.device), mask.to(model.device)
    settings = PackKVConfig(
        codec="hybrid:delta=0.3,v_levels=16", weights_digest="w", calibration_tokens=70,
        backend=backend, cache_bytes=1 << 20,
    )  # fmt: skip
    logits = []
    with PackKV(model, None, settings) as packkv, torch.inference_mode():
        cache = packkv.new_cache(ids, mask)
        # a prefill that makes a page of one row, then a decode step over both
        for start, stop in ((0, 80), (80, 81)):
            step = model(ids[:, start:stop], mask[:, :stop], past_key_values=cache).logits
            logits.append(step[:, -1].cpu())
        assert [row.packed_tokens for row in cache.rows] == [64, 0]
        packkv.publish(cache)
        again = packkv.new_cache(ids[:1])
        assert again.matched_tokens == [64]
        assert again.rows[0].pages == cache.rows[0].pages[:1]
        # a suffix long enough to unpack the page for
        logits.append(model(ids[:1, 64:], past_key_values=again).logits[:, -1].cpu())
        # a page that is cut goes back to exact tokens, where the model computes
        again.crop(-40)
        logits.append(model(ids[:1, 50:51], past_key_values=again).logits[:, -1].cpu())
        assert packkv._paged is not None
        return logits, bytes(packkv._paged.payload(cache.rows[0].pages[0]))


@needs_triton
@pytest.mark.gpu
def test_a_model_computes_the_same_with_its_pages_on_a_device() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found, page = follow(small_model(device), "triton" if device.type == "cpu" else None)
    wanted, same_page = follow(small_model(torch.device("cpu")), "cpu")
    if device.type == "cpu":
        assert page == same_page
    for step, (own, right) in enumerate(zip(found, wanted, strict=True)):
        assert (own - right).abs().max() < 2e-2 * right.abs().max(), f"step {step}"


class Recorded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What operators are given while it is entered, down to those that torch calls itself.

    Attributes:
        attention: the arguments of each `packkv::decode_attention`.
        sent: the targets of copies from host memory to the device.
        taken: bytes of the memory that was taken.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attention: list[tuple[Any, ...]] = []
        self.sent: list[torch.Tensor] = []
        self.taken = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.packkv.decode_attention.default:
            self.attention.append(args)
        if func is torch.ops.aten.copy_.default and args[0].device != args[1].device:
            self.sent.append(args[0])
        for tensor in tensors(out):
            if tensor.untyped_storage()._cdata not in given:
                self.taken += tensor.untyped_storage().nbytes()
        return out


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def places(tree: Any) -> list[Any]:
    """All that a captured graph would go on using: where tensors lie, and numbers as they are."""
    return [
        (leaf.untyped_storage()._cdata, leaf.storage_offset(), leaf.shape, leaf.stride())
        if isinstance(leaf, torch.Tensor)
        else leaf
        for leaf in tree_leaves(tree)
    ]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="see the test below")
def test_decode_steps_wait_for_nothing_and_move_nothing() -> None:
    # a device without memory: whatever would read from it, such as .item() or .cpu(), raises
    device = torch.device("meta")
    with pytest.raises(RuntimeError):
        torch.zeros(1, device=device).item()
    model = small_model(device)
    settings = PackKVConfig(weights_digest="w", backend="triton", cache_bytes=1 << 20)
    with PackKV(model, None, settings, profile=random_profile(shape_of(model))) as packkv:
        cached = [with_pages(packkv, pages) for pages in (1, 3, 2)]
        joined = JoinedCache(cached[:2])

        def step(caches: list[PackedKVCache]) -> Recorded:
            ids = torch.zeros(len(caches), 1, dtype=torch.long, device=device)
            at = torch.tensor([[cache.length] for cache in caches], device=device)
            joined.join(caches)
            recorded = Recorded()
            with torch.no_grad(), recorded:
                model(ids, position_ids=at, past_key_values=joined)
            return recorded

        with torch.inference_mode():
            begun = step(cached[:2])
        steps = [step(cached[:2]) for _ in range(3)]
        assert len(begun.attention) == len(steps[0].attention) == 2
        for later in steps:
            assert places(later.attention) == places(begun.attention)
            assert later.taken == steps[0].taken < begun.taken
            # of both layers only the numbers of exact tokens
            (counts,) = later.sent
            assert (counts.shape, counts.dtype) == ((2,), torch.int32)
        tables = begun.attention[0][4]
        exchanged = step([cached[0], cached[2]])
        assert places(exchanged.attention) == places(begun.attention)
        rows = [part for part in exchanged.sent if same_memory(part, tables)]
        assert [(part.storage_offset(), len(part)) for part in rows] == [(tables.shape[1], 2)]
        assert cached[0].length == BLOCK_TOKENS + 5
        first, second = (step(cached[2:]).attention for _ in range(2))
        assert places(first) == places(second)
        # the residual of a sequence alone is read where each layer holds it
        assert not same_memory(first[0][1], first[1][1])


def same_memory(first: torch.Tensor, second: torch.Tensor) -> bool:
    return bool(first.untyped_storage()._cdata == second.untyped_storage()._cdata)


def with_pages(packkv: PackKV, pages: int) -> PackedKVCache:
    """A cache of one row that holds so many pages, and nothing after them."""
    assert packkv._paged is not None
    length = pages * BLOCK_TOKENS
    kv = random_kv(packkv.shape, length, dtype=torch.float32, seed=pages)
    codec = CodecConfig.parse(packkv.config.codec)
    found = packkv._paged.adopt_all(
        [read_payload(data) for data in encode_payloads(*kv, codec, packkv.profile)]
    )
    cache = packkv.new_cache(torch.zeros(1, 1, dtype=torch.long))
    cache.rows[0].adopt(found.pages)
    cache.start(cache.rows, [0], length, [[0] * length])
    return cache


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: it runs by itself")
def test_so_it_does_in_the_interpreter() -> None:
    chosen = "same_with_its_pages or move_nothing"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-W", "ignore::DeprecationWarning", __file__, "-k", chosen),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout, done.stdout
