"""What `packkv bench store` is to measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from packkv.errors import ConfigError

# All of it lies in this process, in a store, a Redis and a raw peer at one time.
MAX_TOTAL_BYTES: Final = 2 << 30
MAX_CLIENTS: Final = 64
MATCHED_BLOCKS: Final = 2048


@dataclass(frozen=True)
class Plan:
    """Sizes and counts.

    Attributes:
        blocks: that one transfer moves.
        block_bytes: about so many for each of them.
        rounds: of all transfers, after one that warms up.
        looks: timed calls of Match.
        clients: numbers of client processes that fetch at one time.
        gets: transfers that they make together, for each of those numbers.

    Raises:
        ConfigError: more than a machine should be asked for.
    """

    blocks: int
    block_bytes: int
    rounds: int
    looks: int
    clients: tuple[int, ...]
    gets: int

    def __post_init__(self) -> None:
        if self.total_bytes > MAX_TOTAL_BYTES:
            raise ConfigError(
                f"{self.blocks} blocks of {self.block_bytes:,} bytes are {self.total_bytes:,}; the "
                f"most is {MAX_TOTAL_BYTES:,}: choose fewer --blocks or smaller --block-bytes"
            )
        for count in self.clients:
            if not 1 <= count <= MAX_CLIENTS:
                raise ConfigError(f"--clients {count} is not between 1 and {MAX_CLIENTS}")

    @property
    def total_bytes(self) -> int:
        """Of one transfer, about."""
        return self.blocks * self.block_bytes
