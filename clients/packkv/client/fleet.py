"""Many nodes as one store, as a client sees them: one that leaves is not noticed."""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Self, TypeAlias, TypeVar

from packkv.client.client import Client
from packkv.client.config import ClientConfig
from packkv.client.messages import Fetched, Match, Put, Span
from packkv.client.paths import Arrived, Buffer
from packkv.errors import ClientClosed, ConfigError, StoreError, StoreUnavailable

T = TypeVar("T")

# Leases whose node is remembered; of one that is older, the nodes are asked in turn.
MAX_LEASES: Final = 4096
# Owners to which connections are kept, and those that one Get asks at one time.
MAX_OWNERS: Final = 64
AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class _Leased:
    """Who granted a lease, and where the blocks are: address and payload length."""

    by: Client
    places: Mapping[bytes, tuple[str, int]]


class Fleet:
    """The serving calls of `Client`, made to the first of several nodes that can be reached.

    A node that is restarted costs a call a try, not an error: `StoreUnavailable` is raised only
    when no node answers for as long as `ClientConfig.retries` last. A Put is made again elsewhere
    if its blocks are a sequence, as blocks that are put twice are stored once; an iterator is read
    once. Thread-safe, to be closed.

    Args:
        targets: gRPC targets, the nearest first: the node on this host, then others for when it is
            away.
        direct: fetch payloads from the nodes that have them, several at a time, and not through the
            first. For a client without a node on its host, where what is passed on would cross the
            network twice and displace what others want there.
        config: as for `Client`.
    """

    def __init__(
        self, targets: Sequence[str], *, direct: bool = False, config: ClientConfig | None = None
    ) -> None:
        if not targets:
            raise ConfigError("a fleet has at least one target")
        self.config = config or ClientConfig()
        # another node is better than another try
        self._each = replace(self.config, retries=0)
        self._clients = [Client(target, config=self._each) for target in targets]
        self._direct = direct
        self._last = self._clients[0]
        # guards what follows
        self._lock = threading.Lock()
        self._leases: OrderedDict[int, _Leased] = OrderedDict()
        self._owners: OrderedDict[str, Client] = OrderedDict()
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="packkv-owners")
        self._closed = threading.Event()

    def close(self) -> None:
        """Closes all connections; calls under way in other threads end with ClientClosed."""
        self._closed.set()
        with self._lock:
            clients = [*self._clients, *self._owners.values()]
            self._owners.clear()
        for client in clients:
            client.close()
        self._threads.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def path(self) -> str | None:
        """How the last Get or Put went, as `Client.path`."""
        return self._last.path

    def match(
        self,
        chain_hashes: Sequence[bytes],
        *,
        heads: Span | None = None,
        lease_ms: int = 0,
        deadline_s: float | None = None,
    ) -> Match:
        """As `Client.match`."""

        def ask(client: Client) -> Match:
            found = client.match(
                chain_hashes,
                heads=heads,
                lease_ms=lease_ms,
                owners=self._direct,
                deadline_s=deadline_s,
            )
            self._remember(client, chain_hashes, found)
            return found

        return self._anywhere(ask)

    def put(
        self, blocks: Iterable[tuple[bytes, Buffer]], *, deadline_s: float | None = None
    ) -> list[Put]:
        """As `Client.put`."""
        if isinstance(blocks, Sequence):
            return self._anywhere(lambda client: client.put(blocks, deadline_s=deadline_s))
        once = _Once(blocks)
        return self._anywhere(
            lambda client: client.put(once, deadline_s=deadline_s), may_go_on=lambda: not once.read
        )

    def get(
        self,
        chain_hashes: Sequence[bytes],
        *,
        layers: Span | None = None,
        heads: Span | None = None,
        lease_id: int = 0,
        max_bytes: int | None = None,
        on_bytes: Callable[[int], object] | None = None,
        on_layers: Callable[[Arrived], object] | None = None,
        groups: int = 1,
        deadline_s: float | None = None,
    ) -> list[Fetched]:
        """As `Client.get`. With `direct` and the lease of a match, from the nodes that it named,
        unless layers are wanted in their order; what one of them does not deliver is asked for as
        without."""
        leased = self._leased(lease_id)
        answers: dict[int, Fetched] = {}
        if self._direct and leased is not None and on_layers is None:
            answers = self._from_owners(leased, chain_hashes, layers, heads, on_bytes, deadline_s)
        left = [place for place in range(len(chain_hashes)) if place not in answers]
        if left:
            hashes = [chain_hashes[place] for place in left]
            fetched = self._anywhere(
                lambda client: client.get(
                    hashes,
                    layers=layers,
                    heads=heads,
                    lease_id=lease_id,
                    max_bytes=max_bytes,
                    on_bytes=on_bytes,
                    on_layers=on_layers,
                    groups=groups,
                    deadline_s=deadline_s,
                ),
                first=leased.by if leased else None,
            )
            answers |= zip(left, fetched, strict=True)
        return [answers[place] for place in range(len(chain_hashes))]

    def renew(self, lease_id: int, lease_ms: int, *, deadline_s: float | None = None) -> int:
        """As `Client.renew`, at the node that granted it; 0 when that is gone."""
        leased = self._leased(lease_id)
        if leased is None:
            return 0
        try:
            return leased.by.renew(lease_id, lease_ms, deadline_s=deadline_s)
        except StoreUnavailable:
            return 0

    def release(self, lease_id: int, *, wait: bool = True) -> None:
        """As `Client.release`; a node that has gone has no lease to end."""
        with self._lock:
            leased = self._leases.pop(lease_id, None)
        if leased is not None:
            with suppress(StoreUnavailable):
                leased.by.release(lease_id, wait=wait)

    def put_profile(self, model_digest: bytes, profile: bytes) -> bytes:
        """As `Client.put_profile`."""
        return self._anywhere(lambda client: client.put_profile(model_digest, profile))

    def get_profile(self, model_digest: bytes) -> bytes | None:
        """As `Client.get_profile`."""
        return self._anywhere(lambda client: client.get_profile(model_digest))

    def _anywhere(
        self,
        call: Callable[[Client], T],
        *,
        first: Client | None = None,
        may_go_on: Callable[[], bool] = lambda: True,
    ) -> T:
        """What the first node answers that can be reached. Raises StoreUnavailable and whatever
        else a node that can be reached ends the call with."""
        order = [first] if first is not None else []
        order += [client for client in self._clients if client is not first]
        pause_s = self.config.backoff_s
        for round_ in range(self.config.retries + 1):
            if round_:
                self._closed.wait(random.uniform(pause_s / 2, pause_s))
                pause_s *= 2
            for client in order:
                if self._closed.is_set():
                    raise ClientClosed("the fleet is closed")
                try:
                    answer = call(client)
                except StoreUnavailable as error:
                    last = error
                else:
                    self._last = client
                    return answer
                if not may_go_on():
                    raise last
        raise last

    def _remember(self, client: Client, hashes: Sequence[bytes], found: Match) -> None:
        if not found.lease_id:
            return
        owners = zip(hashes, found.owners, found.lengths, strict=False)
        places = {name: (owner, length) for name, owner, length in owners if owner}
        with self._lock:
            self._leases[found.lease_id] = _Leased(client, places)
            while len(self._leases) > MAX_LEASES:
                self._leases.popitem(last=False)

    def _leased(self, lease_id: int) -> _Leased | None:
        with self._lock:
            return self._leases.get(lease_id)

    def _from_owners(
        self,
        leased: _Leased,
        hashes: Sequence[bytes],
        layers: Span | None,
        heads: Span | None,
        on_bytes: Callable[[int], object] | None,
        deadline_s: float | None,
    ) -> dict[int, Fetched]:
        """Answers by place, of the blocks that came."""
        shares: dict[str, list[int]] = {}
        for place, name in enumerate(hashes):
            if name in leased.places:
                shares.setdefault(leased.places[name][0], []).append(place)

        def fetch(address: str, places: Sequence[int]) -> list[tuple[int, Fetched]]:
            names = [hashes[place] for place in places]
            # as much as the match has announced, and no more
            most = sum(leased.places[name][1] for name in names)
            try:
                fetched = self._owner(address).get(
                    names,
                    layers=layers,
                    heads=heads,
                    max_bytes=max(1, most),
                    on_bytes=on_bytes,
                    deadline_s=deadline_s,
                )
            except (StoreError, ConfigError, ClientClosed):
                # it has gone, may not be sent a token, or was closed for others: ask elsewhere
                return []
            return [
                (place, one)
                for place, one in zip(places, fetched, strict=True)
                if one.data is not None
            ]

        shared = self._threads.map(fetch, shares.keys(), shares.values())
        return dict(answer for answers in shared for answer in answers)

    def _owner(self, address: str) -> Client:
        """Raises ConfigError, ClientClosed."""
        with self._lock:
            if self._closed.is_set():
                raise ClientClosed("the fleet is closed")
            known = self._owners.get(address)
            if known is None:
                known = self._owners[address] = Client(address, config=self._each)
            self._owners.move_to_end(address)
            going = [
                self._owners.popitem(last=False)[1] for _ in range(len(self._owners) - MAX_OWNERS)
            ]
        for client in going:
            client.close()
        return known


Store: TypeAlias = Client | Fleet


def open_store(target: str, *, config: ClientConfig | None = None) -> Store:
    """A client of the node at `target`, or of several, the nearest first: "host:port,host:port"."""
    targets = target.split(",")
    # gRPC itself takes addresses in a row: "ipv4:10.0.0.1:7437,10.0.0.2:7437"
    if len(targets) == 1 or target.startswith(("ipv4:", "ipv6:")):
        return Client(target, config=config)
    return Fleet([one.strip() for one in targets], config=config)


class _Once:
    """An iterable that can be read once; says whether that has begun."""

    def __init__(self, blocks: Iterable[tuple[bytes, Buffer]]) -> None:
        self._blocks = blocks
        self.read = False

    def __iter__(self) -> Iterator[tuple[bytes, Buffer]]:
        self.read = True
        return iter(self._blocks)
