"""The bulk path: a few TCP connections of our own, over which whole prefixes go in one piece.

A thread that waits for a prefix makes two system calls, however many blocks it has, and so meets
Python's interpreter lock twice: another busy thread of the worker hardly slows it down.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from packkv.client.messages import Fetched, Put
from packkv.client.paths import Buffer, Opening, PathBroken, Wanted
from packkv.client.paths.answers import Refusal, named, puts
from packkv.client.paths.buffers import Buffers
from packkv.client.paths.bulk_batches import Batches
from packkv.client.paths.bulk_links import Links
from packkv.client.paths.landing import Landing
from packkv.client.paths.request import check_names, check_wanted, first_and_count
from packkv.errors import (
    DeadlineExceeded,
)
from packkv_protos.bulk import frames
from packkv_protos.bulk.frames import Frame, FrameError, Kind
from packkv_protos.bulk.wire import Wire


def open_bulk(opening: Opening) -> BulkPath | None:
    """The bulk path of a server, with its first connection open; None when it offers none.

    Raises:
        PathBroken: the port cannot be reached, or somebody else is there.
        StoreError: the server refuses the credential.
    """
    port, host = opening.offer.bulk_port, host_of(opening.target)
    if port == 0 or host is None:
        return None
    links = Links(host, port, opening.offer.nonce, opening.config)
    path = BulkPath(opening.target, links, opening.buffers)
    path.connect(opening.timeout_s)
    return path


def host_of(target: str) -> str | None:
    """The one host of a gRPC target; None when it names several, or none."""
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract", "vsock"):
        return None
    address = rest.rsplit("/", 1)[-1] if scheme in ("dns", "ipv4", "ipv6") else target
    if "," in address:
        return None
    host = address.rpartition(":")[0] if ":" in address.rpartition("]")[2] else address
    return host.strip("[]") or None


class BulkPath:
    """Payloads over the bulk protocol of docs/protocol.md."""

    name = "bulk"

    def __init__(self, target: str, links: Links, buffers: Buffers) -> None:
        self._target = target
        self._links = links
        self._buffers = buffers

    def connect(self, timeout_s: float) -> None:
        """Opens a connection for the calls to come. Raises as `open_bulk`."""
        ends_at = time.monotonic() + timeout_s
        try:
            with (
                named(f"{'Connect'} at {self._target}", "bulk path"),
                self._links.borrowed(ends_at),
            ):
                pass
        except DeadlineExceeded as late:
            raise PathBroken(str(late), is_untouched=True) from late

    def get(self, wanted: Wanted, deadline_s: float) -> list[Fetched]:
        ends_at = time.monotonic() + deadline_s
        request = _get_request(wanted)
        with (
            named(f"{'Get'} at {self._target}", "bulk path"),
            self._links.borrowed(ends_at) as link,
        ):
            found = frames.read_found(_body(link.ask(request, ends_at), Kind.FOUND))
            landing = Landing(found, wanted, self._buffers)
            mark = memoryview(bytearray(frames.MARK.size))
            link.wire.receive([mark], ends_at)
            while (size := _size(mark)) not in (frames.RUNS_END, frames.RUNS_FAIL):
                # the mark of the next run comes with this one: one wait less
                parts = [*landing.next(size), mark]
                link.wire.receive(parts, ends_at, lambda came: wanted.count(min(came, size)))
                if wanted.on_layers is not None:
                    wanted.hand_on(landing.arrived())
            if size == frames.RUNS_FAIL:
                raise _failure(link.wire.receive_frame(ends_at))
            return landing.blocks()

    def put(self, blocks: Iterable[tuple[bytes, Buffer]], deadline_s: float) -> list[Put]:
        ends_at = time.monotonic() + deadline_s
        batches = Batches(blocks)
        names: list[bytes] = []
        results: list[frames.Result] = []
        with (
            named(f"{'Put'} at {self._target}", "bulk path"),
            self._links.borrowed(ends_at) as link,
        ):
            # only now is the iterable touched: without a connection another path may have it
            batch = batches.next()
            if batch:
                reply = link.ask(_put_request(batch), ends_at)
            while batch:
                names += [name for name, _ in batch]
                _send(link.wire, batch, reply, ends_at)
                batch = batches.next()
                link.wire.send([_put_request(batch)], ends_at)
                reply = link.wire.receive_frame(ends_at)
            if names:
                results = frames.read_results(_body(reply, Kind.RESULTS))
        if batches.failure is not None:
            raise batches.failure
        return puts(results, names)

    def close(self) -> None:
        self._links.close()

    def _named(self, call: str) -> AbstractContextManager[None]:
        return named(f"{call} at {self._target}", "bulk path")


def _get_request(wanted: Wanted) -> bytes:
    check_wanted(wanted)
    layers = first_and_count("layers", wanted.layers)
    heads = first_and_count("heads", wanted.heads)
    return frames.pack_get(
        frames.Get(layers, heads, wanted.max_bytes, wanted.groups, list(wanted.chain_hashes))
    )


def _put_request(batch: Sequence[tuple[bytes, memoryview]]) -> bytes:
    """The next blocks, or the end when there are none."""
    if not batch:
        return frames.pack(Kind.END)
    check_names([name for name, _ in batch])
    return frames.pack_put([(name, len(data)) for name, data in batch])


def _send(
    wire: Wire, batch: Sequence[tuple[bytes, memoryview]], reply: Frame, ends_at: float
) -> None:
    """The bytes of the blocks, as the server has room for them; `reply` says which come first."""
    while True:
        wanted = frames.read_wanted(_body(reply, Kind.WANTED), len(batch))
        wire.send([data for (_, data), yes in zip(batch, wanted, strict=False) if yes], ends_at)
        batch = batch[len(wanted) :]
        if not batch:
            return
        reply = wire.receive_frame(ends_at)


def _body(reply: Frame, due: Kind) -> memoryview:
    if reply.kind is Kind.ERROR:
        raise Refusal(reply.code, frames.read_error(reply.body))
    if reply.kind is not due:
        raise FrameError(f"{reply.kind.name} came, {due.name} is due")
    return reply.body


def _failure(reply: Frame) -> Exception:
    if reply.kind is Kind.ERROR:
        return Refusal(reply.code, frames.read_error(reply.body))
    return FrameError(f"{reply.kind.name} came, ERROR is due")


def _size(mark: memoryview) -> int:
    size: int = frames.MARK.unpack(mark)[0]
    return size
