"""One spelling per JSON value, so that equal values have equal digests everywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no white space.

    Raises:
        ValueError: the value has a second spelling or none: a key that is no string (JSON would
            write 1 and "1" alike), NaN, infinity, a lone surrogate, or a type JSON does not have.
    """
    _refuse_other_keys(value)
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode()
    except TypeError as reason:
        raise ValueError(f"not a JSON value: {reason}") from reason


def canonical_digest(value: object) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return sha256(canonical_json(value)).hexdigest()


def plain(value: object) -> object:
    """The value with every mapping as a dict and every sequence as a list, as JSON has them."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def _refuse_other_keys(value: object) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"a key must be a string, not {key!r}")
            _refuse_other_keys(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_other_keys(inner)
