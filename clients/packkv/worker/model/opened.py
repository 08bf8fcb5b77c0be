"""Opens the model of a worker: files → weights on a device, tokenizer, decoder."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from packkv.demo.model import bundled_gguf, model_folder
from packkv.errors import ConfigError
from packkv.worker.config import WorkerConfig
from packkv.worker.model.decoder import Decoder
from packkv.worker.model.language import Language
from packkv.worker.model.packed import PackedDecoder, warm_up
from packkv.worker.model.plain import PlainDecoder
from packkv_kernels.errors import CodecError

_log = logging.getLogger("packkv.worker")


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model that can be asked.

    Attributes:
        name: what requests call it.
        language: its tokenizer.
        decoder: its weights at work.
        max_context: longest prompt and answer together, in tokens.
        end_tokens: ids that end an answer.
    """

    name: str
    language: Language
    decoder: Decoder
    max_context: int
    end_tokens: frozenset[int]


def open_model(config: WorkerConfig) -> OpenModel:
    """Load, connect to the store if there is one, and warm up. Takes seconds to minutes.

    Raises:
        ConfigError: no such model or device, or one that cannot do what is asked.
    """
    device = _device(config.device)
    folder = model_folder(config.model)
    model = _load(folder, device, _dtype(config.dtype, device))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as reason:
        raise ConfigError(f"{folder} has no tokenizer that can be loaded: {reason}") from reason
    max_context = _max_context(model, config.max_context)
    name = config.served_name or _name(config.model or bundled_gguf())
    _log.info("%s on %s in %s, codec %s", name, device, model.dtype, config.codec)
    return OpenModel(
        name=name,
        language=Language(tokenizer, model.config.get_text_config(decoder=True).vocab_size),
        decoder=_decoder(model, config),
        max_context=max_context,
        end_tokens=_end_tokens(model, tokenizer.eos_token_id),
    )


def _decoder(model: PreTrainedModel, config: WorkerConfig) -> Decoder:
    if config.is_plain:
        return PlainDecoder(model)
    try:
        warm_up(model, config.codec)
        return PackedDecoder.connect(model, config)
    except CodecError as error:
        raise ConfigError(f"cannot pack {model.name_or_path}: {error}") from error


def _name(place: Path) -> str:
    return place.resolve().name if place.is_dir() else place.stem


def _device(name: str) -> torch.device:
    device = torch.device(name)
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ConfigError(f"device {name}: torch finds {found} CUDA devices here")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _load(folder: Path, device: torch.device, dtype: torch.dtype | str) -> PreTrainedModel:
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError) as reason:
        raise ConfigError(f"cannot load the model in {folder}: {reason}") from reason
    return model.eval().to(device)


def _max_context(model: PreTrainedModel, wanted: int | None) -> int:
    known: int | None = getattr(
        model.config.get_text_config(decoder=True), "max_position_embeddings", None
    )
    if wanted is None and known is None:
        raise ConfigError("the model does not say how long its context is: give --max-context")
    if wanted is not None and known is not None and wanted > known:
        raise ConfigError(f"max_context is {wanted:,}; the model knows {known:,} positions")
    return wanted or known or 0


def _end_tokens(model: PreTrainedModel, of_tokenizer: int | None) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = of_tokenizer
    return frozenset([ends] if isinstance(ends, int) else ends or [])
