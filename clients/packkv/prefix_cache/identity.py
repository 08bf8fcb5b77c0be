"""How the codec's own types and a namespace describe the same thing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from packkv.client import Store
from packkv.errors import ConfigError, PackKVError
from packkv.identity import Namespace
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig
from packkv_kernels.errors import CodecError
from packkv_kernels.format.payload import VERSION, Expectation, KVDtype

_log = logging.getLogger("packkv.prefix_cache")
_NO_PROFILE = bytes(32)


def codec_identity(codec: CodecConfig) -> dict[str, object]:
    """The `codec` field of a namespace: the id and every parameter of a codec."""
    return {"id": codec.name, **codec.parameters}


@dataclass(frozen=True)
class Identity:
    """What every payload of a prefix cache must say of itself.

    Raises:
        ConfigError: namespace, codec and payload format contradict each other.
    """

    namespace: Namespace
    codec: CodecConfig
    shape: CacheShape
    first_head: int

    def __post_init__(self) -> None:
        if self.namespace.codec != codec_identity(self.codec):
            raise ConfigError(
                f"the namespace says codec {dict(self.namespace.codec)}, the codec is {self.codec}"
            )
        if self.codec.needs_profile and self.namespace.profile_digest is None:
            raise ConfigError(f"codec {self.codec.name} needs the digest of its profile")
        if self.namespace.block_size != BLOCK_TOKENS or self.namespace.layout_version != VERSION:
            raise ConfigError(
                f"this codec writes blocks of {BLOCK_TOKENS} tokens in layout {VERSION}, not "
                f"{self.namespace.block_size} in layout {self.namespace.layout_version}"
            )
        if self.namespace.kv_dtype.upper() not in KVDtype.__members__:
            raise ConfigError(f"kv_dtype {self.namespace.kv_dtype!r} is not one of the format's")
        self._profile_digest()

    @property
    def payload_limit(self) -> int:
        """No payload of this shape is longer: every value exact, and room for all metadata."""
        sections = self.shape.layers * self.shape.heads
        return 4096 + sections * (4096 + 2 * BLOCK_TOKENS * self.shape.head_dim * 8)

    def expect(self, root_hash: bytes, chain_hash: bytes, index: int) -> Expectation:
        """Everything that block `index` of a prefix must be."""
        first_token = index * BLOCK_TOKENS
        return Expectation(
            codec=self.codec.codec_id,
            kv_dtype=KVDtype[self.namespace.kv_dtype.upper()],
            tokens=BLOCK_TOKENS,
            sinks=self.codec.block_sinks(first_token, BLOCK_TOKENS),
            shape=self.shape,
            first_head=self.first_head,
            root_hash=root_hash,
            chain_hash=chain_hash,
            codec_digest=self.codec.digest,
            profile_digest=self._profile_digest(),
            first_token=first_token,
        )

    def _profile_digest(self) -> bytes:
        if self.namespace.profile_digest is None:
            return _NO_PROFILE
        try:
            digest = bytes.fromhex(self.namespace.profile_digest)
        except ValueError:
            digest = b""
        if len(digest) != len(_NO_PROFILE):
            raise ConfigError(
                f"profile_digest {self.namespace.profile_digest!r} is no SHA-256 in hexadecimal"
            )
        return digest


def adopt_profile(
    client: Store,
    namespace: Namespace,
    profile: bytes,
    *,
    check: Callable[[bytes], object] | None = None,
) -> bytes:
    """The profile to use: the first that any worker published for this model, or `profile`.

    Called before a `PrefixCache` is made, because its namespace contains the digest of the answer.
    Never raises for the store's sake: without an answer, or with one that `check` (for example
    `Profile.from_bytes`) refuses, the worker keeps its own and shares with fewer.
    """
    try:
        adopted = client.put_profile(namespace.model_digest(), profile) or profile
        if check is not None and adopted != profile:
            check(adopted)
        return adopted
    except (PackKVError, CodecError) as error:
        _log.warning("no profile adopted: %s; this worker uses its own", error)
        return profile
