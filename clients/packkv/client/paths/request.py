"""What the server would refuse anyway, refused before it is sent: on every path alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from packkv.client.messages import Span
from packkv.client.paths import Wanted
from packkv.errors import InvalidRequest, LimitExceeded

MAX_BLOCKS: Final = 16_384
HASH_BYTES: Final = 32
_MAX_RANGE_END: Final = 65_535
_MAX_GROUPS: Final = 65_535


def check_wanted(wanted: Wanted) -> None:
    """Raises InvalidRequest, LimitExceeded."""
    count = len(wanted.chain_hashes)
    if count > MAX_BLOCKS:
        what = f"Get: number of chain hashes is {count}; allowed: at most {MAX_BLOCKS}"
        raise LimitExceeded(what, status="RESOURCE_EXHAUSTED")
    if count == 0:
        raise InvalidRequest("Get: no chain hashes", status="INVALID_ARGUMENT")
    check_names(wanted.chain_hashes)


def check_layered(wanted: Wanted) -> None:
    """Raises InvalidRequest unless the payloads can come layer by layer, if they are to."""
    if wanted.on_layers is not None and not wanted.whole:
        what = "Get: on_layers needs whole payloads, without a choice of layers or heads"
        raise InvalidRequest(what, status="INVALID_ARGUMENT")
    if not 1 <= wanted.groups <= _MAX_GROUPS:
        what = f"Get: groups is {wanted.groups}; allowed: 1 to {_MAX_GROUPS}"
        raise InvalidRequest(what, status="INVALID_ARGUMENT")


def check_names(names: Sequence[bytes]) -> None:
    """Raises InvalidRequest unless every chain hash has 32 bytes."""
    for place, name in enumerate(names):
        if len(name) != HASH_BYTES:
            what = f"chain hash {place} has {len(name)} bytes; allowed: {HASH_BYTES}"
            raise InvalidRequest(what, status="INVALID_ARGUMENT")


def first_and_count(field: str, span: Span | None) -> tuple[int, int]:
    """A range of the wire; a count of 0 means all. Raises LimitExceeded, ValueError."""
    if span is None:
        return 0, 0
    if min(span.first, span.count) < 0:
        raise ValueError(f"{field} cannot begin at {span.first} and have {span.count}")
    if span.first + span.count > _MAX_RANGE_END:
        what = f"Get: end of {field} is {span.first + span.count}; allowed: {_MAX_RANGE_END}"
        raise LimitExceeded(what, status="RESOURCE_EXHAUSTED")
    return span.first, span.count
