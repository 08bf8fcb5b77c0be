"""A digest of the weights that a model really computes with.

Every byte counts, at every size. Two revisions of a model, a fine-tune or a re-quantisation share
their index, headers and file sizes, and may differ anywhere, so a digest of headers or of samples
would one day give two models one name, silently. To stay quick, each file is cut into pieces of
64 MiB that are hashed in parallel (hashlib lets other threads run): about 1.8 GB/s a core, in files
that loading the model reads anyway. Who cannot spend that passes an immutable revision, such as a
commit id, as `Namespace.weights_digest` instead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from packkv.errors import ConfigError
from packkv.identity.canonical import canonical_json

# In a model's folder: where `packkv calibrate` puts its profile and workers look for it. It is no
# part of the weights' digest.
PROFILE_FILE = "packkv.profile"

_PIECE_BYTES = 64 << 20
_READ_BYTES = 1 << 20
_INDEX = "model.safetensors.index.json"
# what these say changes the computation as much as the weights do: norms, LoRA's alpha, scales
_MEANINGFUL = ("config.json", "adapter_config.json", "quantize_config.json", "hf_quant_config.json")
# written by tools, without a meaning for the computation
_VOLATILE_CONFIG = frozenset({"_name_or_path", "_commit_hash", "transformers_version"})


def weights_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256, in hexadecimal, over all bytes of a weights file or of a model folder's weights.

    A file (safetensors, GGUF or other) counts with its content, whatever its name. A folder counts
    with its safetensors shards (those of the index, if there is one; else all), or with its only
    GGUF file, and with the JSON files that say how the weights are used. That goes for the folder
    of a LoRA adapter as well.

    Raises:
        ConfigError: there is nothing at `path` that could be digested without doubt.
    """
    place = Path(path)
    if place.is_file():
        return _digest([], [place])
    if not place.is_dir():
        raise ConfigError(f"no weights at {place}: neither a file nor a folder")
    return _digest(list(_texts(place)), _weight_files(place))


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.is_file():
        return [_shard(folder, name) for name in sorted(_shard_names(index))]
    shards = sorted(folder.glob("*.safetensors"))
    if shards:
        return shards
    gguf = sorted(folder.glob("*.gguf"))
    if len(gguf) == 1:
        return gguf
    found = f"{len(gguf)} GGUF files: name the one" if gguf else "no *.safetensors and no *.gguf"
    raise ConfigError(f"cannot tell the weights in {folder}: {found}")


def _shard_names(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as reason:
        raise ConfigError(f"{index} is no safetensors index: {reason!r}") from reason


def _shard(folder: Path, name: str) -> Path:
    if Path(name).name != name or not (folder / name).is_file():
        raise ConfigError(f"{folder / _INDEX} names {name!r}, which is no file of that folder")
    return folder / name


def _texts(folder: Path) -> Iterator[bytes]:
    """The small files whose meaning, not whose layout, belongs to the weights."""
    for name in (_INDEX, *_MEANINGFUL):
        if (folder / name).is_file():
            try:
                value = json.loads((folder / name).read_bytes())
            except ValueError as reason:
                raise ConfigError(f"{folder / name} is no JSON: {reason}") from reason
            if isinstance(value, dict):
                value = {k: v for k, v in value.items() if k not in _VOLATILE_CONFIG}
            yield name.encode() + b"\0" + canonical_json(value)


def _digest(texts: Iterable[bytes], files: Iterable[Path]) -> str:
    total = sha256(b"packkv weights 1\0")
    for text in texts:
        total.update(b"text" + len(text).to_bytes(8, "little") + text)
    pieces = [
        (file, start, size)
        for file in files
        for size in [file.stat().st_size]
        for start in range(0, max(size, 1), _PIECE_BYTES)
    ]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for (_, start, size), piece in zip(
            pieces, pool.map(lambda piece: _piece_digest(*piece), pieces), strict=True
        ):
            # start and size mark where a file begins, so that bytes cannot move between files
            total.update(start.to_bytes(8, "little") + size.to_bytes(8, "little") + piece)
    return total.hexdigest()


def _piece_digest(file: Path, start: int, size: int) -> bytes:
    piece = sha256()
    left = min(_PIECE_BYTES, size - start)
    with file.open("rb") as content:
        content.seek(start)
        while left > 0 and (read := content.read(min(_READ_BYTES, left))):
            piece.update(read)
            left -= len(read)
    if left > 0:
        raise ConfigError(f"{file} became shorter while it was read")
    return piece.digest()
