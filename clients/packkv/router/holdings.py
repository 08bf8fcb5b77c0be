"""Which blocks are where: what stores say, and what workers were sent.

Blocks are kept by the first eight bytes of their names: two that share them, once in 2⁶⁴ pairs,
send a request to the wrong worker and nothing worse.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from packkv.client import Changes, Client, ClientConfig, Watch
from packkv.errors import PackKVError

_log = logging.getLogger("packkv.router")

_SHORT_BYTES = 8
# Of one store; more are left out. A name takes about 70 bytes.
MAX_FOLLOWED = 4 << 20
# Of one worker: 64 prompts of 64 Ki tokens.
MAX_RECENT = 65_536
_PAUSE_S = 1.0


def short_names(names: Iterable[bytes]) -> list[int]:
    """Chain hashes as this module keeps them."""
    return [int.from_bytes(name[:_SHORT_BYTES], "little") for name in names]


class Holdings:
    """The blocks of one store, followed on a thread of its own. Nothing is known while the store
    cannot be reached."""

    def __init__(self, store: str, config: ClientConfig) -> None:
        self.store = store
        # it is asked again and again, and nobody waits
        patient = replace(config, breaker_pause_s=_PAUSE_S, breaker_max_pause_s=_PAUSE_S)
        self._client = Client(store, config=patient)
        self._names: set[int] = set()
        self._watch: Watch | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow {store}", daemon=True)
        self.is_current = False

    def __len__(self) -> int:
        return len(self._names)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Returns when the thread has ended."""
        self._over.set()
        self._client.close()
        if (watch := self._watch) is not None:
            watch.close()
        self._thread.join()

    def run(self, names: Sequence[int]) -> int:
        """How many blocks from the front the store holds."""
        return _known(names, self._names)

    def _run(self) -> None:
        was_there = True
        while not self._over.is_set():
            try:
                self._follow()
            except PackKVError as error:
                self._forget()
                if was_there and not self._over.is_set():
                    _log.warning("the blocks of %s are unknown: %s", self.store, error)
                was_there = False
            self._over.wait(_PAUSE_S)

    def _follow(self) -> None:
        with self._client.watch() as watch:
            self._watch = watch
            # closed meanwhile: nobody would end it
            if self._over.is_set():
                return
            for change in watch:
                self._take(change)

    def _take(self, change: Changes) -> None:
        if change.reset:
            self._forget()
        room = MAX_FOLLOWED - len(self._names)
        self._names.update(short_names(change.stored)[: max(0, room)])
        self._names.difference_update(short_names(change.removed))
        if change.current:
            self.is_current = True
            _log.info("following %d blocks of %s", len(self._names), self.store)

    def _forget(self) -> None:
        self.is_current = False
        # others may be reading the old one
        self._names = set()


class Recent:
    """The blocks that one worker was sent lately: its own memory has them, and its store soon."""

    def __init__(self) -> None:
        self._names: OrderedDict[int, None] = OrderedDict()

    def add(self, names: Sequence[int]) -> None:
        # the tail of a prompt is forgotten before its head
        for name in reversed(names):
            self._names[name] = None
            self._names.move_to_end(name)
        while len(self._names) > MAX_RECENT:
            self._names.popitem(last=False)

    def forget(self) -> None:
        self._names.clear()

    def run(self, names: Sequence[int]) -> int:
        """How many blocks from the front it was sent."""
        return _known(names, self._names)


def _known(names: Sequence[int], known: set[int] | OrderedDict[int, None]) -> int:
    """How many names from the front are known."""
    return next((at for at, name in enumerate(names) if name not in known), len(names))
