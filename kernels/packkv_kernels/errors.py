"""What can go wrong in the codec.

CodecError
├── InvalidInput(ValueError)   a caller's tensor, shape, dtype or setting does not qualify
├── ProfileError               bytes that are not a profile, or a profile of another model
├── PayloadError               bytes that are not a payload, or not the one expected
└── CacheFull                  a paged cache has no room left that it may take
"""

from typing import Literal

__all__ = [
    "CacheFull",
    "CodecError",
    "InvalidInput",
    "PayloadError",
    "PayloadReason",
    "ProfileError",
]

PayloadReason = Literal[
    "truncated", "magic", "version", "checksum", "identity", "layout", "section"
]


class CodecError(Exception):
    """Base of everything that the codec raises on purpose."""


class InvalidInput(CodecError, ValueError):
    """A value that a caller passed breaks a limit; the message has both, and says where."""


class ProfileError(CodecError):
    """A profile cannot be read, or was made for a model of another shape."""


class PayloadError(CodecError):
    """A payload is refused. To a cache this is a miss; `reason` is its label in the metrics.

    Attributes:
        reason: "truncated" fewer bytes than the header says; "magic" and "version" not ours;
            "checksum" bytes changed; "identity" sound, but of another namespace, block or shape;
            "layout" header and section table disagree; "section" a section's inside is impossible.
    """

    def __init__(self, reason: PayloadReason, message: str) -> None:
        super().__init__(message)
        self.reason: PayloadReason = reason


class CacheFull(CodecError):
    """A paged cache's pages are all in use; what should have been packed stays as it is."""
