"""`packkv bench codec`: from a tiny random model to the JSON of the contract."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from numbers import Number
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from packkv.bench.codec.budgets import budgeted_profiles, even_profile, scaled_profiles
from packkv.bench.codec.command import _within_positions
from packkv.bench.codec.exact import ExactRun
from packkv.bench.codec.families import Grid, hybrid
from packkv.bench.codec.plan import Plan
from packkv.bench.codec.setting import KeysValues
from packkv.cli import app
from packkv_kernels.config import CacheShape
from packkv_kernels.profile import Profile

# the contract of design/quality.md
ROW = {
    "codec": str,
    "setting": str,
    **dict.fromkeys(("bits", "kl", "kl_p99", "top1", "dnll", "encode_gbs", "decode_gbs"), Number),
}
CODECS = ("hybrid", "packkv", "kvcomp", "kivi")


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
        max_position_embeddings=1024,
        # large enough for the past to matter to the logits
        initializer_range=0.2,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder: a tiny random model, and a token for every byte."""
    place = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(place)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(place)
    return place


class Identity:
    """Stores everything as it is."""

    label = "identity"

    def encode(self, keys: torch.Tensor, values: torch.Tensor) -> Kept:
        return Kept(keys, values)


class Kept:
    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._pair = (keys, values)
        self.nbytes = keys.nbytes + values.nbytes

    def decode(self) -> KeysValues:
        return self._pair


def test_an_identity_codec_changes_nothing() -> None:
    ids = torch.randint(0, 256, (1, 161), generator=torch.Generator().manual_seed(1))
    measured = ExactRun(tiny_model(), ids, 128).measure(Identity())
    assert measured.bits == 32
    assert measured.score.kl.shape == (32,)
    assert (measured.score.kl == 0).all()
    assert (measured.score.top1, measured.score.dnll) == (1, 0)


def test_the_score_is_that_of_the_whole_sequence() -> None:
    model = tiny_model()
    ids = torch.randint(0, 256, (1, 161), generator=torch.Generator().manual_seed(1))
    exact = ExactRun(model, ids, 128)
    score = exact.score(exact.keys, torch.zeros_like(exact.values))
    with torch.inference_mode():
        wanted = model(ids).logits[0, 128:-1].log_softmax(-1)
    assert score.kl.mean() > 0.01
    torch.testing.assert_close(exact._exact, wanted, atol=1e-4, rtol=0)


def test_greedy_tokens_are_those_that_the_model_generates() -> None:
    model = tiny_model()
    ids = torch.randint(0, 256, (1, 161), generator=torch.Generator().manual_seed(1))
    exact = ExactRun(model, ids, 128, greedy_tokens=24)
    wanted = generated(model, exact.keys, exact.values, ids[:, :129], 24)
    assert exact.greedy_equal_tokens(exact.keys, exact.values) == 24
    found = []
    for noise in (0.02, 0.1, 0.3, 1.0):
        keys = exact.keys + noise * torch.randn_like(exact.keys)
        tokens = generated(model, keys, exact.values, ids[:, :129], 24)
        common = [a == b for a, b in zip(tokens, wanted, strict=True)]
        equal = common.index(False) if False in common else 24
        assert exact.greedy_equal_tokens(keys, exact.values) == equal
        found.append(equal)
    assert 0 < min(found) < 24 or 0 in found
    assert len(set(found)) > 1


def generated(
    model: Any, keys: torch.Tensor, values: torch.Tensor, prompt: torch.Tensor, count: int
) -> list[int]:
    """Token by token, through `generate`, over K and V of all tokens of the prompt but one."""
    cache = DynamicCache()
    for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
        cache.update(k.transpose(0, 1)[None], v.transpose(0, 1)[None], layer)
    output = model.generate(
        prompt,
        past_key_values=cache,
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    found: list[int] = output[0, prompt.shape[1] :].tolist()
    return found


def test_budgets_trade_bits_for_kl() -> None:
    model = tiny_model()
    ids = torch.randint(0, 256, (2, 1, 225), generator=torch.Generator().manual_seed(1))
    profile = even_profile(model, list(ids))
    steps = []
    made = budgeted_profiles(model, list(ids), profile, 3, lambda done, total: steps.append(done))
    assert model.config._attn_implementation != "packkv"
    assert steps == list(range(1, len(steps) + 1))
    exact = ExactRun(model, ids[0], 128)
    measured = [exact.measure(setting) for setting in hybrid(made).settings]
    bits = [result.bits for result in measured]
    assert bits == sorted(bits, reverse=True)
    assert measured[0].score.kl.mean() <= measured[-1].score.kl.mean()


def test_given_profiles_share_the_settings() -> None:
    profiles = [Profile.identity(CacheShape(1, 2, 16)) for _ in range(2)]
    assert len(scaled_profiles(profiles, 16)) == 16
    assert [config.delta for config, _, _ in scaled_profiles(profiles, 2)] == [1, 1]


def test_quick_writes_what_the_contract_asks(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Twas brillig, and the slithy toves did gyre and gimble in the wabe. " * 9)
    files = {name: tmp_path / f"found.{name}" for name in ("json", "csv", "svg")}
    result = CliRunner().invoke(
        app,
        [
            *("bench", "codec", "--quick", "--model", str(folder)),
            *("--text", str(text), "--text", str(Path(__file__))),
            *("--prefix-tokens", "192", "--scored-tokens", "32"),
            *("--long-prefix-tokens", "640", "--greedy-tokens", "8"),
            *("--json", str(files["json"]), "--csv", str(files["csv"])),
            *("--plot", str(files["svg"])),
        ],
    )
    assert result.exit_code == 0, result.output
    found = json.loads(files["json"].read_text(encoding="utf-8"))
    for row in found["rows"]:
        assert {key for key, kind in ROW.items() if not isinstance(row.get(key), kind)} == set()
        assert (row["published_bits"] is not None) == (row["codec"] == "packkv")
    codecs = {row["codec"] for row in found["rows"]}
    assert codecs >= {*CODECS, "fp8", "int4-hadamard", "transformers-fp8"}
    for codec in CODECS:
        assert {"0.005", "0.018"} <= {
            key for key, bits in found["bits_at_kl"][codec].items() if isinstance(bits, Number)
        }
    assert found["texts"] == ["text.txt", "test_codec.py"]
    # only one of them is long enough for the second prefix
    long = found["long_prefix"]
    assert (long["prefix_tokens"], long["texts"]) == (640, ["test_codec.py"])
    assert {row["codec"] for row in long["rows"]} == codecs
    assert any("from text.txt: shorter than 673 tokens" in note for note in found["notes"])
    for section, texts in ((found, 2), (long, 1)):
        assert {*section["greedy_at_kl"]} == codecs
        for at in section["greedy_at_kl"].values():
            assert {key: len(near["equal_tokens"]) for key, near in at.items()} == {
                "0.005": texts,
                "0.018": texts,
            }
            assert all(0 <= n <= 8 for near in at.values() for n in near["equal_tokens"])
    lines = list(csv.DictReader(files["csv"].read_text(encoding="utf-8").splitlines()))
    rows = [(192, row) for row in found["rows"]] + [(640, row) for row in long["rows"]]
    assert [(int(line["prefix_tokens"]), line["setting"]) for line in lines] == [
        (tokens, row["setting"]) for tokens, row in rows
    ]
    assert ElementTree.parse(files["svg"]).getroot().tag.endswith("svg")


def test_a_model_without_positions_for_the_long_prefix_is_measured_without() -> None:
    plan = Plan(128, 16, Grid.QUICK, long_prefix_tokens=1000, greedy_tokens=24)
    kept, notes = _within_positions(plan, tiny_model())
    assert (kept.long_prefix_tokens, len(notes)) == (0, 1)
    assert "they take 1,025 positions, and the model has 1,024" in notes[0]
    fits = replace(plan, long_prefix_tokens=999)
    assert _within_positions(fits, tiny_model()) == (fits, [])


def test_a_short_text_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("too short")
    result = CliRunner().invoke(
        app, ["bench", "codec", "--quick", "--model", str(folder), "--text", str(text)]
    )
    assert result.exit_code == 1
    assert "short.txt has 9 tokens" in result.output
