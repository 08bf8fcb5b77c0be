"""Which blocks are being fetched right now, so that loads at one time fetch each of them once."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from packkv_kernels.format.payload import Payload


class Flight:
    """Some blocks that one load fetches, for itself and for all that want them meanwhile.

    Attributes:
        payloads: those that came, verified and resident, by chain hash; complete once it landed.
        refused: the block that ended it, and why, where that holds for everybody: the store does
            not have it, or what it has is refused. Empty when a second try may have it.
    """

    def __init__(self) -> None:
        self._landed = threading.Event()
        self.payloads: Mapping[bytes, Payload] = {}
        self.refused: Mapping[bytes, str] = {}

    def wait(self, timeout_s: float) -> bool:
        """Whether it has landed by then."""
        return self._landed.wait(max(0.0, timeout_s))

    def land(self, payloads: Mapping[bytes, Payload], refused: Mapping[bytes, str]) -> None:
        self.payloads, self.refused = payloads, refused
        self._landed.set()


class Flights:
    """The flights of one prefix cache. Thread-safe.

    Whoever `board`s a flight of its own must `land` it, whatever happens. Nobody waits in here: a
    passenger waits at the flight, for as long as its own deadline lets it, and when the flight
    brings nothing it boards again; one of those that do then leads the next flight, and the others
    wait for it. So there is never more than one fetch of a block, and no load hangs on another's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[bytes, Flight] = {}

    def board(self, chain_hashes: Sequence[bytes]) -> tuple[Flight, int]:
        """The flight of the first block, and how many from the front the caller has to fetch.

        0 says that somebody else fetches the first block: the flight is theirs. Otherwise it is
        the caller's, and has all blocks up to the first that somebody else fetches.
        """
        with self._lock:
            theirs = self._under_way.get(chain_hashes[0])
            if theirs is not None:
                return theirs, 0
            mine, count = Flight(), 0
            for chain_hash in chain_hashes:
                if chain_hash in self._under_way:
                    break
                self._under_way[chain_hash] = mine
                count += 1
            return mine, count

    def land(
        self,
        flight: Flight,
        chain_hashes: Sequence[bytes],
        payloads: Sequence[Payload],
        verdict: str | None,
    ) -> None:
        """Ends the caller's flight: of its blocks, in order, the first have come.

        Args:
            flight: from `board`.
            chain_hashes: as many as it had.
            payloads: of the first of them.
            verdict: why the next one is refused for everybody; None when it may come again.
        """
        with self._lock:
            for chain_hash in chain_hashes:
                if self._under_way.get(chain_hash) is flight:
                    del self._under_way[chain_hash]
        ended_by = chain_hashes[len(payloads) : len(payloads) + 1]
        refused = {name: verdict for name in ended_by if verdict is not None}
        flight.land(dict(zip(chain_hashes, payloads, strict=False)), refused)
