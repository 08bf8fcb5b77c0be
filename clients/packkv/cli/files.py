"""Files that commands read: namespaces, token ids, chain hashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from packkv.errors import ConfigError

if TYPE_CHECKING:
    from packkv.identity import Namespace


def read_text(file: Path) -> str:
    """The text of a file, or a ConfigError that names it."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        raise ConfigError(f"cannot read {file}: {reason}") from reason


def read_namespace(file: Path) -> Namespace:
    """A namespace from a JSON file."""
    from packkv.identity import Namespace

    try:
        return Namespace.from_json(read_text(file))
    except ConfigError as reason:
        raise ConfigError(f"{file}: {reason}") from reason


def read_token_ids(file: Path) -> list[int]:
    """Token ids from a JSON list, or separated by white space or commas."""
    text = read_text(file)
    try:
        if text.lstrip().startswith("["):
            tokens = json.loads(text)
        else:
            tokens = [int(word) for word in text.replace(",", " ").split()]
    except ValueError as reason:
        raise ConfigError(f"{file} holds no token ids: {reason}") from reason
    if not all(type(token) is int for token in tokens):
        raise ConfigError(f"{file} holds something that is no whole number")
    return list(tokens)


def read_hashes(file: Path) -> list[bytes]:
    """Chain hashes, 64 hexadecimal digits each, separated by white space."""
    return [parse_hash(word) for word in read_text(file).split()]


def parse_hash(text: str) -> bytes:
    """A hash from its 64 hexadecimal digits."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != 32:
        raise ConfigError(f"{text!r} is no hash: 64 hexadecimal digits are")
    return value


def chosen_root(namespace: Path | None, root: str | None) -> bytes | None:
    """The root hash that --namespace or --root names; None when neither is given."""
    if namespace is not None and root is not None:
        raise ConfigError("--namespace and --root say the same thing: give one")
    if namespace is not None:
        return read_namespace(namespace).root_hash()
    return None if root is None else parse_hash(root)
