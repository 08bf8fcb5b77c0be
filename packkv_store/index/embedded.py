"""The index of a single node: a dictionary in its own process."""

from collections.abc import Sequence

from packkv_store.block import BlockKey
from packkv_store.index import Location, Member


class EmbeddedIndex:
    """Nothing to install, nothing to lose: rebuilt from the disk tier at every start."""

    def __init__(self) -> None:
        self._locations: dict[BlockKey, tuple[Location, ...]] = {}
        self._claims: dict[BlockKey, bytes] = {}

    @property
    def is_up(self) -> bool:
        return True

    async def start(self, address: str) -> None:
        """There is nobody to find this node."""

    async def leaving(self) -> None:
        """There is nobody to tell."""

    async def stop(self, forget_seconds: float = 0.0) -> None:
        """There is nobody to leave."""

    async def publish(self, keys: Sequence[BlockKey], location: Location) -> None:
        alone = (location,)
        for key in keys:
            known = self._locations.get(key)
            if known is None:
                self._locations[key] = alone
            elif location not in known:
                self._locations[key] = (*known, location)

    async def withdraw(self, keys: Sequence[BlockKey], location: Location) -> None:
        for key in keys:
            left = tuple(at for at in self._locations.get(key, ()) if at != location)
            if left:
                self._locations[key] = left
            else:
                self._locations.pop(key, None)

    async def locate(self, keys: Sequence[BlockKey]) -> list[tuple[Location, ...]]:
        return [self._locations.get(key, ()) for key in keys]

    async def repair(self, keys: Sequence[BlockKey]) -> None:
        """It is never wrong about its own process."""

    def address(self, node: str) -> str | None:
        """A single node has no others to connect to."""
        return None

    async def meet(self, node: str) -> str | None:
        return None

    async def members(self) -> Sequence[Member]:
        return ()

    async def only_here(self, keys: Sequence[BlockKey]) -> list[bool]:
        return [True] * len(keys)

    async def claim(self, key: BlockKey, value: bytes, instead_of: bytes = b"") -> bytes | None:
        if self._claims.get(key) in (None, instead_of):
            self._claims[key] = value
        return self._claims[key]
