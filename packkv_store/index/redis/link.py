"""What the parts of the index ask of Redis, and the breaker that leaves a lost one alone."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from packkv_store.block import BlockKey
from packkv_store.index.redis.connection import PATIENT, Command, Connection, IndexDown
from packkv_store.index.redis.layout import (
    CLAIM,
    MAX_HOLDERS,
    SET_TIERS,
    claim_key,
    tag_of,
)

log = logging.getLogger(__name__)

# One script holds up Redis for about this many times 3 µs.
MAX_KEYS_OF_A_SCRIPT = 512


class Link:
    """Any call that fails opens the breaker; then only `probing` calls go to Redis, and one of
    them that succeeds closes it. So no request waits for a Redis that is known to be gone."""

    def __init__(self, connection: Connection, where: str, on_return: Callable[[], None]) -> None:
        self.shards = connection.shards
        self.is_up = True
        self.failures = 0
        self._connection = connection
        self._where = where
        self._on_return = on_return

    async def call(
        self, commands: Sequence[Command], *, probing: bool = False, patience: float = 1.0
    ) -> list[Any]:
        """Answers to the commands, in one round trip. Raises IndexDown."""
        if not self.is_up and not probing:
            raise IndexDown("left alone until it answers a heartbeat")
        try:
            answers = await self._connection.together(commands, patience)
        except IndexDown as error:
            self._failed(error)
            raise
        if not self.is_up:
            self.is_up = True
            log.info("index %s is back", self._where)
            self._on_return()
        return answers

    async def values(
        self, names: Sequence[bytes], *, probing: bool = False, patience: float = 1.0
    ) -> list[bytes | None]:
        """The values of keys, in one round trip. Raises IndexDown."""
        if self.shards == 1 and names:
            [found] = await self.call([("MGET", *names)], probing=probing, patience=patience)
            return list(found)
        groups = self._groups(names)
        commands: list[Command] = [("MGET", *(names[at] for at in group)) for group in groups]
        answers = await self.call(commands, probing=probing, patience=patience)
        values: list[bytes | None] = [None] * len(names)
        for group, answer in zip(groups, answers, strict=True):
            for at, value in zip(group, answer, strict=True):
                values[at] = value
        return values

    async def set_tiers(self, mark: bytes, names: Sequence[bytes], tiers: bytes) -> None:
        """Says where one node has blocks: a byte of tier bits for each. Raises IndexDown."""
        commands: list[Command] = []
        for group in self._groups(names):
            for first in range(0, len(group), MAX_KEYS_OF_A_SCRIPT):
                part = group[first : first + MAX_KEYS_OF_A_SCRIPT]
                told = bytes(tiers[at] for at in part)
                # EVAL, not EVALSHA: a Redis that was replaced would not know the digest
                some = (names[at] for at in part)
                commands.append(("EVAL", SET_TIERS, len(part), *some, mark, told, MAX_HOLDERS))
        await self.call(commands, patience=PATIENT)

    async def claim(self, key: BlockKey, value: bytes, instead_of: bytes) -> bytes:
        """The value in force under a name. Raises IndexDown."""
        [won] = await self.call([("EVAL", CLAIM, 1, claim_key(key), value, instead_of)])
        return bytes(won)

    async def names(self, count: int) -> AsyncIterator[list[bytes]]:
        """All keys of Redis, about `count` at a time. Raises IndexDown."""
        try:
            async for batch in self._connection.names(count):
                yield batch
        except IndexDown as error:
            self._failed(error)
            raise

    async def close(self) -> None:
        """Nothing is sent any more."""
        self.is_up = False
        await self._connection.close()

    def _failed(self, error: IndexDown) -> None:
        self.failures += 1
        if self.is_up:
            self.is_up = False
            log.warning("index %s: %s; serving what this node holds", self._where, error)

    def _groups(self, names: Sequence[bytes]) -> list[list[int]]:
        """Places of names that may go into one command."""
        if self.shards == 1:
            return [list(range(len(names)))] if names else []
        groups: dict[bytes, list[int]] = {}
        for at, name in enumerate(names):
            groups.setdefault(tag_of(name), []).append(at)
        return list(groups.values())
