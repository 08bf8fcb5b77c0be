import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from packkv.errors import ConfigError
from packkv.identity import weights as weights_module
from packkv.identity import weights_digest

CONFIG = {"rms_norm_eps": 1e-5, "transformers_version": "5.17"}


def save_model(
    folder: Path, values: Mapping[str, float], config: Mapping[str, object] = CONFIG
) -> Path:
    """A model in shards, one tensor each, with an index and a configuration."""
    folder.mkdir()
    for name, value in values.items():
        tensor = np.full((64, 64), value, np.float32)
        save_file({name: tensor}, str(folder / f"{name}.safetensors"))
    index = {"weight_map": {name: f"{name}.safetensors" for name in values}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", {"a": 1.0, "b": 2.0})


def test_copies_of_a_model_are_the_same_model(tmp_path: Path, model: Path) -> None:
    newer = CONFIG | {"transformers_version": "5.23"}
    copy = save_model(tmp_path / "copy", {"a": 1.0, "b": 2.0}, newer)
    (copy / "consolidated.safetensors").write_bytes(b"not in the index")
    assert weights_digest(copy) == weights_digest(model)


def test_one_changed_value_changes_the_digest_though_headers_and_sizes_agree(
    tmp_path: Path, model: Path
) -> None:
    before = weights_digest(model)
    shard = model / "b.safetensors"
    content = bytearray(shard.read_bytes())
    for position in (len(content) - 1, len(content) // 2):
        changed = bytearray(content)
        changed[position] ^= 1
        shard.write_bytes(changed)
        assert weights_digest(model) != before
    shard.write_bytes(content)
    assert weights_digest(model) == before


def test_swapped_shards_are_another_model(tmp_path: Path, model: Path) -> None:
    swapped = save_model(tmp_path / "swapped", {"a": 2.0, "b": 1.0})
    assert weights_digest(swapped) != weights_digest(model)


def test_another_configuration_is_another_model(tmp_path: Path, model: Path) -> None:
    other = save_model(tmp_path / "other", {"a": 1.0, "b": 2.0}, {"rms_norm_eps": 1e-6})
    assert weights_digest(other) != weights_digest(model)


def test_an_adapter_with_another_alpha_is_another_adapter(tmp_path: Path) -> None:
    digests = set()
    for alpha in (16, 32):
        folder = tmp_path / str(alpha)
        folder.mkdir()
        save_file({"lora_A": np.ones((4, 8), np.float32)}, str(folder / "adapter.safetensors"))
        (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
        digests.add(weights_digest(folder))
    assert len(digests) == 2


def test_a_file_counts_with_its_content_not_its_name(tmp_path: Path) -> None:
    for name, content in (
        ("a.gguf", b"GGUF" * 9),
        ("b.gguf", b"GGUF" * 9),
        ("c.gguf", b"GGUG" * 9),
    ):
        (tmp_path / name).write_bytes(content)
    a, b, c = (weights_digest(tmp_path / name) for name in ("a.gguf", "b.gguf", "c.gguf"))
    assert a == b != c


def test_pieces_are_hashed_wherever_they_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_module, "_PIECE_BYTES", 100)
    file = tmp_path / "weights.bin"
    content = np.random.default_rng(0).bytes(350)
    file.write_bytes(content)
    digests = {weights_digest(file)}
    for position in (0, 99, 100, 199, 200, 300, 349):
        changed = bytearray(content)
        changed[position] ^= 0x80
        file.write_bytes(changed)
        digests.add(weights_digest(file))
    file.write_bytes(content[:-1])
    digests.add(weights_digest(file))
    assert len(digests) == 9


@pytest.mark.parametrize("names", [[], ["a.gguf", "b.gguf"], ["pytorch_model.bin"]], ids=str)
def test_a_folder_without_certain_weights_is_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match="cannot tell the weights"):
        weights_digest(tmp_path)


def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, model: Path) -> None:
    index = {"weight_map": {"a": "../model/a.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="no file of that folder"):
        weights_digest(model)


def test_nothing_at_the_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        weights_digest(tmp_path / "nowhere")
