"""Which nodes live, by their heartbeats; and whether Redis still has what it was told."""

import asyncio
import json
import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from packkv_store.config import split_address
from packkv_store.errors import ConfigError
from packkv_store.index import Member
from packkv_store.index.redis.connection import PATIENT, Command, IndexDown
from packkv_store.index.redis.layout import GET_EPOCH, NODES, epoch_key, heartbeat_key, mark_of
from packkv_store.index.redis.link import Link

# Nodes that this one has met in the index lately; a fleet is smaller.
MAX_PEERS = 4096
MAX_HEARTBEAT_BYTES = 1024
# Who there is, is asked at most so often: it costs a read for each node of the fleet.
LIST_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node that lives."""

    node: str
    address: str
    is_leaving: bool


class Roster:
    """Heartbeats are read for the nodes that this one meets in the index, not for all there are:
    what a beat costs does not grow with the fleet."""

    def __init__(
        self,
        node: str,
        link: Link,
        beat_seconds: float,
        live_seconds: float,
        on_loss: Callable[[Collection[int]], None],
    ) -> None:
        self._node = node
        self._mark = mark_of(node)
        self._address = ""
        self._is_leaving = False
        self._link = link
        self._beat_seconds = beat_seconds
        self._live_ms = int(live_seconds * 1000)
        self._on_loss = on_loss
        self._peers: OrderedDict[bytes, Peer | None] = OrderedDict()
        self._epochs: dict[int, bytes] = {}
        self._members: list[Member] = []
        self._listed_at = float("-inf")

    def say(self, address: str) -> None:
        """Where others shall look for this node."""
        self._address = address

    def peer(self, mark: bytes) -> Peer | None:
        """The node, if it is known to live."""
        return self._peers.get(mark)

    def address(self, node: str) -> str | None:
        peer = self._peers.get(mark_of(node))
        return peer.address if peer is not None else None

    async def meet(self, marks: Collection[bytes]) -> None:
        """Looks up nodes that were not met before; from now on their heartbeats are followed.
        Raises IndexDown."""
        fresh = [mark for mark in marks if mark not in self._peers and mark != self._mark]
        if fresh:
            values = await self._link.values([heartbeat_key(mark) for mark in fresh])
            self._note(fresh, values)

    async def members(self) -> Sequence[Member]:
        """The other nodes that live and stay, as of LIST_SECONDS ago at most. Raises IndexDown."""
        now = asyncio.get_running_loop().time()
        if now - self._listed_at >= LIST_SECONDS:
            [marks] = await self._link.call([("SMEMBERS", NODES)])
            others = [mark for mark in marks if mark != self._mark][:MAX_PEERS]
            values = await self._link.values([heartbeat_key(mark) for mark in others])
            known = map(_peer, others, values)
            self._members = [Member(p.node, p.address) for p in known if p and not p.is_leaving]
            self._listed_at = now
        return self._members

    async def keep_beating(self) -> None:
        """One beat after another, until cancelled. The beat also tries a Redis that was gone."""
        while True:
            with suppress(IndexDown):
                await self.beat()
            await asyncio.sleep(self._beat_seconds)

    async def beat(self) -> None:
        """Says that this node lives, reads who else does. Raises IndexDown."""
        marks = list(self._peers)
        alive = json.dumps(
            {"node": self._node, "address": self._address, "leaving": self._is_leaving}
        )
        beat: list[Command] = [
            ("SET", heartbeat_key(self._mark), alive, "PX", self._live_ms),
            ("SADD", NODES, self._mark),
        ]
        await self._link.call(beat, probing=True, patience=PATIENT)
        shards = range(self._link.shards)
        names = [epoch_key(shard) for shard in shards] + [heartbeat_key(mark) for mark in marks]
        values = await self._link.values(names, patience=PATIENT)
        self._note(marks, values[len(shards) :])
        await self._compare(values[: len(shards)])

    async def say_leaving(self) -> None:
        """Nothing is copied here any more; others learn it with their next look. Raises
        IndexDown."""
        self._is_leaving = True
        await self.beat()

    async def leave(self) -> None:
        """Nobody is sent here any more, at once. Raises IndexDown."""
        await self._link.call([("DEL", heartbeat_key(self._mark))])

    async def forget(self) -> None:
        """Nothing of this node is left to be swept. Raises IndexDown."""
        await self._link.call([("SREM", NODES, self._mark)])

    async def _compare(self, epochs: Sequence[bytes | None]) -> None:
        gone = [shard for shard, epoch in enumerate(epochs) if epoch is None]
        words: list[Any] = await self._link.call(
            [("EVAL", GET_EPOCH, 1, epoch_key(shard), secrets.token_bytes(8)) for shard in gone]
        )
        now = {shard: epoch for shard, epoch in enumerate(epochs) if epoch is not None}
        now |= dict(zip(gone, words, strict=True))
        changed = [shard for shard, epoch in now.items() if self._epochs.get(shard) != epoch]
        self._epochs = now
        if changed:
            self._on_loss(changed)

    def _note(self, marks: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        for mark, value in zip(marks, values, strict=True):
            self._peers[mark] = _peer(mark, value)
        while len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)


def _peer(mark: bytes, value: bytes | None) -> Peer | None:
    """What a heartbeat says, if it says it well: anybody may have written it."""
    if value is None or len(value) > MAX_HEARTBEAT_BYTES:
        return None
    try:
        said = json.loads(value)
        node, address = said["node"], said["address"]
        is_leaving = said.get("leaving") is True
        split_address(address)
    except (ValueError, TypeError, KeyError, AttributeError, ConfigError):
        return None
    if not isinstance(node, str) or mark_of(node) != mark:
        return None
    return Peer(node, address, is_leaving)
