"""How much to publish with one Put, so that it ends well within its deadline."""

from __future__ import annotations

# A Put that takes less of its deadline says more of its fixed cost than of the store's pace.
_TELLING_SHARE = 0.1
# What a Put may be expected to take of its deadline.
_SAFE_SHARE = 0.5
# Of a batch that came too late, what is tried next.
_AFTER_LATE = 4


class BatchSize:
    """Grows and shrinks with how fast the store takes payloads: it may be slow, far away, or hold
    this tenant to a rate. A batch that comes too late was sent for little.

    Args:
        most: bytes of a batch that nothing speaks against.
        deadline_s: of a Put.
    """

    def __init__(self, most: int, deadline_s: float) -> None:
        self._most = most
        self._deadline_s = deadline_s
        self.bytes = most

    def took(self, size: int, seconds: float) -> None:
        """A batch of so many bytes was answered."""
        if seconds > _TELLING_SHARE * self._deadline_s:
            fits = int(size * _SAFE_SHARE * self._deadline_s / seconds)
        else:
            fits = 2 * self.bytes
        self.bytes = max(1, min(fits, self._most))

    def was_late(self, size: int) -> None:
        """A batch of so many bytes was not answered in time, or was refused for being too much."""
        self.bytes = max(1, min(size, self.bytes) // _AFTER_LATE)
