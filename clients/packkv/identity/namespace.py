"""The namespace of a prefix: equal namespaces share blocks, different ones never do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from typing import NamedTuple, Self

from packkv.errors import ConfigError
from packkv.identity.canonical import canonical_json, plain

# A profile is looked up before codec and profile are settled, so they cannot be part of its key.
_SETTLED_BY_PROFILE = frozenset({"codec", "profile_digest"})


class Difference(NamedTuple):
    """One field in which two namespaces differ; codec parameters are named `codec.<parameter>`."""

    field: str
    ours: object
    theirs: object


@dataclass(frozen=True, slots=True)
class Namespace:
    """Everything that must be equal for two blocks to be interchangeable.

    Args:
        model: the name of the model, for people; the weights digest is what tells models apart.
        weights_digest: of `weights_digest`, or an immutable revision such as a commit id.
        adapter_digest: of the LoRA adapter, None for the bare model.
        kv_dtype: what the model computes K and V in: "float16", "bfloat16" or "float32".
        codec: id and parameters of the codec, JSON values only.
        profile_digest: SHA-256 of the calibration profile, None when the codec needs none.
        rope_digest: of `rope_digest`.
        block_size: tokens of a block.
        layout_version: of the payload format.
        tenant_salt: keeps tenants apart; comes from the credential, not from the request.
    """

    model: str
    weights_digest: str
    adapter_digest: str | None
    kv_dtype: str
    codec: Mapping[str, object] = field(hash=False)
    profile_digest: str | None
    rope_digest: str
    block_size: int = 64
    layout_version: int = 2
    tenant_salt: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        for name in ("model", "weights_digest", "kv_dtype", "rope_digest"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ConfigError(f"{name} must be a text that is not empty, not {value!r}")
        for name in ("adapter_digest", "profile_digest"):
            if getattr(self, name) == "":
                raise ConfigError(f'{name} must be None or a digest, not ""')
        for name in ("block_size", "layout_version"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} must be an integer from 1 on, not {value!r}")
        # a private copy: the caller's mapping may change later, the root hash must not
        object.__setattr__(self, "codec", plain(self.codec))
        try:
            self.canonical_json()
        except ValueError as reason:
            raise ConfigError(f"a namespace must have one spelling: {reason}") from reason

    def as_dict(self) -> dict[str, object]:
        """The fields as JSON values."""
        return {part.name: plain(getattr(self, part.name)) for part in fields(self)}

    def canonical_json(self) -> bytes:
        """The one spelling that is hashed: sorted keys, UTF-8, no white space."""
        return canonical_json(self.as_dict())

    def root_hash(self) -> bytes:
        """SHA-256 of the canonical JSON: the chain hash of the empty prefix (32 bytes)."""
        return sha256(self.canonical_json()).digest()

    def model_digest(self) -> bytes:
        """SHA-256 of the namespace without codec and profile: the key of a profile (32 bytes)."""
        model = {k: v for k, v in self.as_dict().items() if k not in _SETTLED_BY_PROFILE}
        return sha256(canonical_json(model)).digest()

    def with_cache_salt(self, cache_salt: str) -> Namespace:
        """The namespace of requests that carry this salt; itself without one.

        Requests of different salts share no block, whatever else they have in common.
        """
        if not cache_salt:
            return self
        both = canonical_json([self.tenant_salt, cache_salt])
        return replace(self, tenant_salt=sha256(both).hexdigest())

    def differences(self, other: Namespace) -> list[Difference]:
        """Every field that differs, in field order; empty exactly if the root hashes are equal."""
        ours, theirs = _flat(self.as_dict()), _flat(other.as_dict())
        names = [*ours, *(name for name in theirs if name not in ours)]
        return [
            Difference(name, ours.get(name), theirs.get(name))
            for name in names
            if (name in ours) != (name in theirs)
            or canonical_json(ours[name]) != canonical_json(theirs[name])
        ]

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The namespace of a JSON text, with the defaults for what it leaves out."""
        try:
            values = json.loads(text)
        except ValueError as reason:
            raise ConfigError(f"a namespace is a JSON object: {reason}") from reason
        if not isinstance(values, dict):
            raise ConfigError(f"a namespace is a JSON object, not {type(values).__name__}")
        try:
            return cls(**values)
        except TypeError as reason:
            raise ConfigError(f"these are not the fields of a namespace: {reason}") from reason


def _flat(values: Mapping[str, object]) -> dict[str, object]:
    """The fields with `codec` opened one level, so that a difference names the parameter."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{inner}": deeper for inner, deeper in value.items()})
        else:
            flat[name] = value
    return flat
