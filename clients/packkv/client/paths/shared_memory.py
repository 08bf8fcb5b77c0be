"""The shared-memory path: a store on the same host shows its memory, and tells where blocks are.

A Get is a question and one copy, however many blocks it has. A copy counts only if the lease under
which the store promised to keep the blocks was still in force when it ended.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final

import numpy as np
import numpy.typing as npt

from packkv.client.messages import MAX_PAYLOAD_BYTES, Fetched, Miss, Put, miss_of
from packkv.client.paths import Arrived, Buffer, NotHere, Opening, Views, Wanted
from packkv.client.paths.answers import named, puts
from packkv.client.paths.arena import Arena
from packkv.client.paths.buffers import PAGE, Buffers
from packkv.client.paths.host_links import HostLink, HostLinks, ends_in
from packkv.client.paths.request import check_names, check_wanted, first_and_count
from packkv.client.paths.staging import HALF_BYTES
from packkv.client.paths.unix_wire import PATIENCE_MS
from packkv.errors import DeadlineExceeded, ProtocolViolation
from packkv_protos.shared_memory import frames
from packkv_protos.shared_memory.frames import Kind, Located, Staged, State

_MAX_LEASE_MS: Final = (1 << 32) - 1
Numbers = npt.NDArray[np.int64]


def open_shared_memory(opening: Opening) -> SharedMemory | None:
    """The path to a store on this host, with its memory mapped; None when it offers none.

    Raises:
        PathBroken: the socket is not on this host, or is another server's.
        StoreError: the server refuses the credential.
    """
    path = opening.offer.shared_memory_socket
    if not path or sys.platform != "linux":
        return None
    links = HostLinks(path, opening.offer.nonce, opening.config.token)
    opened = SharedMemory(opening.target, links, opening.buffers)
    opened.connect(opening.timeout_s)
    return opened


class SharedMemory:
    """Payloads by the shared-memory protocol of docs/protocol.md."""

    name = "shared-memory"

    def __init__(self, target: str, links: HostLinks, buffers: Buffers) -> None:
        self._target = target
        self._links = links
        self._buffers = buffers

    def connect(self, timeout_s: float) -> None:
        """Opens a connection for the calls to come. Raises as `open_shared_memory`."""
        with (
            named(f"{'Connect'} at {self._target}", "shared memory"),
            self._links.borrowed(ends_in(timeout_s)),
        ):
            pass

    def get(self, wanted: Wanted, deadline_s: float) -> list[Fetched]:
        ends_at = ends_in(deadline_s)
        with (
            named(f"{'Get'} at {self._target}", "shared memory"),
            self._links.borrowed(ends_at) as link,
        ):
            answer, held_until = _locate(link, wanted, deadline_s)
            places = _Places(answer, wanted, self._links.arena)
            blocks = places.copied(self._buffers)
            is_held = time.monotonic() < held_until
            _release(link, answer)
        if time.monotonic() > ends_at:
            raise DeadlineExceeded(f"Get at {self._target}: no time left", status="")
        wanted.count(places.wanted_bytes)
        if not is_held:
            # the store may have written something else there meanwhile
            return [Fetched(None, block.miss or Miss.ABSENT) for block in blocks]
        wanted.hand_on(Arrived(blocks, [len(block.data or b"") for block in blocks]))
        return blocks

    @contextmanager
    def views(self, wanted: Wanted, lease_s: float, deadline_s: float) -> Iterator[Views]:
        """The payloads where they are, for the length of the `with` body; their sections are
        chosen by `received` alone."""
        with (
            named(f"{'Views'} at {self._target}", "shared memory"),
            self._links.borrowed(ends_in(deadline_s)) as link,
        ):
            answer, held_until = _locate(link, wanted, lease_s)
            blocks = _Places(answer, wanted, self._links.arena).in_place()
            # the caller's errors are not the path's
            failure = None
            try:
                yield Views(blocks, held_until)
            except BaseException as error:
                failure = error
            for block in blocks:
                # what was made of a view keeps it; the lease is over all the same
                with suppress(BufferError):
                    if block.data is not None:
                        block.data.release()
            link.wire.must_end_at(ends_in(deadline_s))
            # the body is done, whatever has become of the server meanwhile
            with suppress(OSError):
                _release(link, answer)
        if failure is not None:
            raise failure

    def put(self, blocks: Iterable[tuple[bytes, Buffer]], deadline_s: float) -> list[Put]:
        names: list[bytes] = []
        results: list[frames.Result] = []
        batches = _Batches(blocks)
        with (
            named(f"{'Put'} at {self._target}", "shared memory"),
            self._links.borrowed(ends_in(deadline_s)) as link,
        ):
            # only now is the iterable touched: without a connection another path may have it
            untaken = 0
            for number, batch in enumerate(batches):
                check_names([name for name, _ in batch])
                untaken = _make_room(link, batch, untaken)
                half = link.staging(_size(batch))
                offsets = half.write(number % 2, [data for _, data in batch])
                rows = [
                    Staged(name, offset, len(data))
                    for (name, data), offset in zip(batch, offsets, strict=True)
                ]
                link.send(frames.pack_put(rows))
                untaken += 1
                names += [name for name, _ in batch]
            for _ in range(untaken):
                link.hear(Kind.TAKEN)
            if names:
                end = frames.pack(Kind.END)
                results = frames.read_results(link.ask(end, Kind.RESULTS))
        if batches.failure is not None:
            raise batches.failure
        return puts(results, names)

    def close(self) -> None:
        self._links.close()

    def _named(self, call: str) -> AbstractContextManager[None]:
        return named(f"{call} at {self._target}", "shared memory")


class _Places:
    """Where the blocks of one Get are, once everything the server said of them has been checked.

    Raises ProtocolViolation; NotHere when a block has to be fetched on another path.
    """

    def __init__(self, answer: Located, wanted: Wanted, arena: Arena) -> None:
        self._arena = arena
        self._states = answer.places["state"].tolist()
        if len(self._states) != len(wanted.chain_hashes):
            raise _violation(f"{len(self._states)} answers, {len(wanted.chain_hashes)} were asked")
        if State.ELSEWHERE in self._states:
            raise NotHere("a block is not in the memory of the store")
        self._here = np.flatnonzero(answer.places["state"] == State.HERE)
        self._offsets: Numbers = answer.places["offset"][self._here].astype(np.int64)
        self._lengths: Numbers = answer.places["length"][self._here].astype(np.int64)
        self._check_places(wanted)
        self._extents = None if wanted.whole else self._checked(answer.extents)
        self.wanted_bytes = int(
            self._lengths.sum() if self._extents is None else self._extents[:, 2].sum()
        )

    def copied(self, buffers: Buffers) -> list[Fetched]:
        """The blocks in memory of our own."""
        offsets, lengths = self._offsets.tolist(), self._lengths.tolist()
        if self._extents is None:
            data = self._arena.copy(offsets, lengths, buffers)
        else:
            data = self._arena.copy_extents(offsets, lengths, self._extents)
        return self._blocks(data)

    def in_place(self) -> list[Fetched]:
        """The blocks where they are."""
        runs = zip(self._offsets.tolist(), self._lengths.tolist(), strict=True)
        return self._blocks([self._arena.view(offset, length) for offset, length in runs])

    def _blocks(self, data: list[memoryview]) -> list[Fetched]:
        found = iter(zip(data, self._received(), strict=True))
        blocks = []
        for state in self._states:
            if state == State.HERE:
                payload, received = next(found)
                blocks.append(Fetched(payload, None, received))
            else:
                blocks.append(Fetched(None, miss_of(state)))
        return blocks

    def _received(self) -> list[tuple[tuple[int, int], ...]]:
        if self._extents is None:
            return [((0, length),) for length in self._lengths.tolist()]
        ranges: list[list[tuple[int, int]]] = [[] for _ in self._lengths]
        for run, offset, length in self._extents.tolist():
            mine = ranges[run]
            if mine and sum(mine[-1]) == offset:
                mine[-1] = (mine[-1][0], mine[-1][1] + length)
            else:
                mine.append((offset, length))
        return [tuple(one) for one in ranges]

    def _check_places(self, wanted: Wanted) -> None:
        total = int(self._lengths.sum())
        if total > wanted.max_bytes:
            raise _violation(f"{total} bytes announced, the limit is {wanted.max_bytes}")
        if np.any(self._lengths < 1) or np.any(self._lengths > MAX_PAYLOAD_BYTES):
            raise _violation("a block has a length that no payload has")
        ends = self._offsets + -(-self._lengths // PAGE) * PAGE
        wrong = (self._offsets < 0) | (self._offsets % PAGE != 0) | (ends > self._arena.size)
        if np.any(wrong):
            block = int(np.argmax(wrong))
            raise _violation(
                f"a block of {self._lengths[block]} bytes at {self._offsets[block]} of an arena "
                f"of {self._arena.size}"
            )

    def _checked(self, extents: frames.Extents) -> npt.NDArray[np.uint32]:
        """Extents by run instead of block, each within its payload and after the one before."""
        blocks, offsets, lengths = extents.T.astype(np.int64)
        runs = np.searchsorted(self._here, blocks)
        if np.any(runs >= len(self._here)) or np.any(self._here[runs] != blocks):
            raise _violation("an extent of a block that is not there")
        ends = offsets + lengths
        if np.any(lengths < 1) or np.any(ends > self._lengths[runs]):
            raise _violation("an extent that its payload does not have")
        same = runs[1:] == runs[:-1]
        if np.any(runs[1:] < runs[:-1]) or np.any(offsets[1:][same] < ends[:-1][same]):
            raise _violation("extents out of order")
        return np.stack([runs, offsets, lengths], 1).astype(np.uint32)


class _Batches:
    """The caller's blocks, in batches of half a staging file. Read once; what the iterable raises
    is kept in `failure` and ends the blocks: those before it are stored all the same."""

    def __init__(self, blocks: Iterable[tuple[bytes, Buffer]]) -> None:
        self._blocks = blocks
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[list[tuple[bytes, memoryview]]]:
        batch: list[tuple[bytes, memoryview]] = []
        size = 0
        for name, data in self._views():
            if batch and (size + len(data) > HALF_BYTES or len(batch) == frames.MAX_BLOCKS):
                yield batch
                batch, size = [], 0
            batch.append((name, data))
            size += len(data)
        if batch:
            yield batch

    def _views(self) -> Iterator[tuple[bytes, memoryview]]:
        try:
            for name, payload in self._blocks:
                yield name, memoryview(payload).cast("B")
        except Exception as failure:
            self.failure = failure


def _locate(link: HostLink, wanted: Wanted, lease_s: float) -> tuple[Located, float]:
    """What the server says, and until when the blocks stay where it says they are."""
    check_wanted(wanted)
    request = frames.pack_locate(
        frames.Locate(
            min(int(lease_s * 1000) + 1, _MAX_LEASE_MS),
            first_and_count("layers", wanted.layers),
            first_and_count("heads", wanted.heads),
            list(wanted.chain_hashes),
        )
    )
    # the lease is counted from before it was granted: it cannot be over earlier than we think
    asked_at = time.monotonic()
    answer = frames.read_located(link.ask(request, Kind.LOCATED, patience_ms=PATIENCE_MS))
    return answer, asked_at + answer.lease_ms / 1000


def _release(link: HostLink, answer: Located) -> None:
    if answer.lease_id:
        link.send(frames.pack_number(Kind.RELEASE, answer.lease_id))


def _make_room(link: HostLink, batch: list[tuple[bytes, memoryview]], untaken: int) -> int:
    """Waits until a half of the staging file is free for the batch, or all of it when the file has
    to be a larger one; how many halves are still being copied."""
    may_be_untaken = 1 if _size(batch) <= HALF_BYTES else 0
    while untaken > may_be_untaken:
        link.hear(Kind.TAKEN)
        untaken -= 1
    return untaken


def _size(batch: list[tuple[bytes, memoryview]]) -> int:
    return sum(len(data) for _, data in batch)


def _violation(what: str) -> ProtocolViolation:
    return ProtocolViolation(f"Get: {what}")
