"""Checks of what a request says, before anything acts on it."""

from collections.abc import Sequence
from typing import cast

from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.block import HASH_BYTES, ChainHash, Span
from packkv_store.errors import LimitExceeded, RequestError
from packkv_store.lifetimes import NEVER
from packkv_store.rpc.status import Context

MAX_HASHES = 16_384
MAX_PAGE = 4096
MAX_FRAME_BYTES = 1 << 20
MAX_PROFILE_BYTES = 16 << 20
MAX_U16 = 65_535
MIN_LIFETIME_SECONDS = 0.001
MAX_LIFETIME_SECONDS = 1e10
BEARER = "bearer "


def chain_hashes(values: Sequence[bytes]) -> list[ChainHash]:
    """At least one and at most 16,384 hashes of 32 bytes."""
    if len(values) > MAX_HASHES:
        raise LimitExceeded("number of chain_hashes", len(values), MAX_HASHES)
    if not values:
        raise RequestError("chain_hashes", "empty", "1 to 16,384 hashes")
    hashes = [*values]
    if {*map(len, hashes)} != {HASH_BYTES}:
        place, size = next((p, len(v)) for p, v in enumerate(hashes) if len(v) != HASH_BYTES)
        raise RequestError(f"chain_hashes[{place}]", f"{size} bytes", "32 bytes")
    return cast(list[ChainHash], hashes)


def digest(field: str, value: bytes) -> bytes:
    """A hash of 32 bytes."""
    if len(value) != HASH_BYTES:
        raise RequestError(field, f"{len(value)} bytes", "32 bytes")
    return value


def lifetime(seconds: float) -> float | None:
    """Seconds, infinity included; None for 0, which is the default."""
    if seconds == 0:
        return None
    if not MIN_LIFETIME_SECONDS <= seconds <= MAX_LIFETIME_SECONDS and seconds != NEVER:
        allowed = f"0, infinity, or {MIN_LIFETIME_SECONDS:g} to {MAX_LIFETIME_SECONDS:g}"
        raise RequestError("seconds", seconds, allowed)
    return seconds


def page(after: bytes, limit: int) -> tuple[bytes, int]:
    """Where a page begins, and how many blocks it may have."""
    if after:
        digest("after", after)
    if limit > MAX_PAGE:
        raise LimitExceeded("limit", limit, MAX_PAGE)
    return after, limit or MAX_PAGE


def span(field: str, value: pb.Range) -> Span:
    """Layers or heads; their numbers are 16-bit in a payload."""
    if value.first + value.count > MAX_U16:
        raise LimitExceeded(f"end of {field}", value.first + value.count, MAX_U16)
    return Span(value.first, value.count)


def frame_size(size: int) -> None:
    """At most 1 MiB of payload a frame."""
    if size > MAX_FRAME_BYTES:
        raise LimitExceeded("data bytes of a frame", size, MAX_FRAME_BYTES)


def profile(value: bytes) -> bytes:
    """1 byte to 16 MiB."""
    if not value:
        raise RequestError("profile", "empty", "1 byte to 16 MiB")
    if len(value) > MAX_PROFILE_BYTES:
        raise LimitExceeded("bytes of profile", len(value), MAX_PROFILE_BYTES)
    return value


def bearer_token(context: Context) -> str | None:
    """The token of metadata `authorization: Bearer TOKEN`."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str) and value.lower().startswith(BEARER):
            return value[len(BEARER) :].strip()
    return None
