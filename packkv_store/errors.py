"""What can go wrong in the server. A miss is not in here: a miss is an answer.

StoreError
├── RequestError         the call is wrong: a field, its value, what is allowed
│   └── LimitExceeded    the call is well formed but larger than this server takes
├── Unauthenticated      no token, or an unknown one
├── NotPermitted         a known caller that may not do this
├── RateExceeded         the caller's rate would have it wait for too long
├── PayloadError         bytes that are not the block they claim to be
├── NoRoom               a tier is full of blocks that may not go
├── Quarantined          a corrupt copy of the block is still held by a reader
├── CorruptBlock         found corrupt while it was being sent
├── TierFailure          the operating system refused to read or write a tier
├── Interrupted          a block that was being passed on stopped coming
├── Leaving              the server is stopping
└── StreamTimeout        a stream was open for longer than any may be

ConfigError              stands apart: it ends the start, no caller ever sees it
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Final


class StoreError(Exception):
    """Base of everything that a call can end with."""


class RequestError(StoreError):
    """The call is wrong: which field, what it held, what is allowed."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field} is {value}; allowed: {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed


class LimitExceeded(RequestError):
    """The call is larger than this server takes."""

    def __init__(self, field: str, value: int, limit: int) -> None:
        super().__init__(field, value, f"at most {limit}")
        self.limit = limit


class Unauthenticated(StoreError):
    """The call carries no bearer token, or one that is not in the tokens file."""


class NotPermitted(StoreError):
    """The caller is known but its token does not allow this call."""


class RateExceeded(StoreError):
    """The caller may move its bytes only after this call has to end."""

    def __init__(self, rate: str, limit: int, wanted: int, due: float, left: float) -> None:
        super().__init__(
            f"{rate} is {limit} bytes/s: {wanted} bytes have their turn in {due:g} s and this call "
            f"can wait for {left:.1f} s; try again then, or move less at a time"
        )
        self.rate = rate
        self.limit = limit
        self.wanted = wanted
        self.due = due


class PayloadError(StoreError):
    """Bytes that are not the block they claim to be: what was found, what was expected."""

    def __init__(self, what: str, found: object, expected: object) -> None:
        super().__init__(f"{what} is {found}, expected {expected}")
        self.what = what
        self.found = found
        self.expected = expected


class NoRoom(StoreError):
    """A tier cannot take a block, because everything in it is leased or being moved."""

    def __init__(self, tier: str, wanted: int, capacity: int) -> None:
        super().__init__(
            f"no room for {wanted} bytes in {tier}: capacity {capacity} bytes, the rest is in use"
        )
        self.tier = tier
        self.wanted = wanted
        self.capacity = capacity


class Quarantined(StoreError):
    """A corrupt copy of the block is still held by a reader; it can be put again later."""

    def __init__(self, chain_hash: str) -> None:
        super().__init__(f"a corrupt copy of {chain_hash} is still held; put it again later")
        self.chain_hash = chain_hash


class CorruptBlock(StoreError):
    """A block was found corrupt after the first of its bytes had been sent."""

    def __init__(self, chain_hash: str) -> None:
        super().__init__(f"block {chain_hash} is corrupt and quarantined; ask for it again")
        self.chain_hash = chain_hash


class Interrupted(StoreError):
    """A block that was passed on while it came from another node did not come whole."""

    def __init__(self, chain_hash: str) -> None:
        super().__init__(f"block {chain_hash} stopped coming from another node; ask for it again")
        self.chain_hash = chain_hash


class TierFailure(StoreError):
    """The operating system refused to read or write a tier."""

    def __init__(self, tier: str, cause: OSError) -> None:
        super().__init__(f"{tier}: {cause.strerror or cause}")
        self.tier = tier
        self.cause = cause


class Leaving(StoreError):
    """The server is stopping: what is asked of it is not begun, or ends here."""

    def __init__(self) -> None:
        super().__init__("the server is stopping")


class StreamTimeout(StoreError):
    """A stream was open for longer than any may be."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"a stream may be open for {seconds:g} s")
        self.seconds = seconds


class ConfigError(ValueError):
    """A setting is wrong; the message says which, its value, and what to do."""


class Status(IntEnum):
    """How a call that failed is answered, on every path; names and numbers are gRPC's."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    ABORTED = 10
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


# The one table from errors to statuses.
STATUS: Final[Mapping[type[StoreError], Status]] = {
    RequestError: Status.INVALID_ARGUMENT,
    LimitExceeded: Status.RESOURCE_EXHAUSTED,
    Unauthenticated: Status.UNAUTHENTICATED,
    NotPermitted: Status.PERMISSION_DENIED,
    RateExceeded: Status.RESOURCE_EXHAUSTED,
    PayloadError: Status.INVALID_ARGUMENT,
    NoRoom: Status.RESOURCE_EXHAUSTED,
    Quarantined: Status.ABORTED,
    CorruptBlock: Status.DATA_LOSS,
    TierFailure: Status.UNAVAILABLE,
    Interrupted: Status.UNAVAILABLE,
    Leaving: Status.UNAVAILABLE,
    StreamTimeout: Status.DEADLINE_EXCEEDED,
}
