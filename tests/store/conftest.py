"""Real servers, real files, real payloads; the only thing moved by hand is the clock."""

import hashlib
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import xxhash

from packkv_protos.v1 import admin_pb2_grpc, block_store_pb2_grpc
from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.app import App
from packkv_store.clock import Clock
from packkv_store.config import StoreConfig

MIB = 1 << 20
HEADER = struct.Struct("<8sHHBBHHHHHHeI32s32s32s32sQQ")
Metadata = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Payload:
    """A block as docs/codec.md describes it, written here from that text alone."""

    chain_hash: bytes
    root_hash: bytes
    data: bytes
    layers: int
    heads: int
    preamble_bytes: int = 0

    @property
    def head_length(self) -> int:
        return -(-(192 + 24 * self.layers * self.heads) // 16) * 16 + self.preamble_bytes


def build_payload(
    chain_hash: bytes,
    root_hash: bytes,
    *,
    first_token: int = 0,
    layers: int = 4,
    heads: int = 2,
    first_head: int = 0,
    section_bytes: int = 256,
    tokens: int = 64,
    preamble_bytes: int = 0,
    compute_ms: float = 0.0,
    seed: int = 0,
) -> Payload:
    """A valid payload with random sections of about `section_bytes`, none like another; a cold one
    if it has a preamble."""
    rng = np.random.default_rng([seed, *chain_hash[:8]])
    sizes = rng.integers(section_bytes // 32 + 1, section_bytes // 16 + 2, layers * heads) * 16
    sections = [rng.bytes(int(size)) for size in sizes]
    preamble = rng.bytes(preamble_bytes)
    table_end = -(-(192 + 24 * layers * heads) // 16) * 16
    head_length = table_end + preamble_bytes
    length = head_length + sum(map(len, sections))
    header = HEADER.pack(
        b"PackKV\r\n", 2, 2, 1, int(preamble_bytes > 0), tokens, 0, layers, first_head, heads, 64,
        compute_ms, preamble_bytes, root_hash, chain_hash, bytes(32), bytes(32), length,
        first_token,
    )  # fmt: skip
    table, at = bytearray(), head_length
    for section in sections:
        table += struct.pack("<II16s", at, len(section), xxhash.xxh3_128_digest(section))
        at += len(section)
    head = bytearray(header + bytes(16) + table)
    head += bytes(table_end - len(head)) + preamble
    head[176:192] = xxhash.xxh3_128_digest(bytes(head))
    data = bytes(head) + b"".join(sections)
    return Payload(chain_hash, root_hash, data, layers, heads, preamble_bytes)


def build_prefix(name: str, count: int, **kwargs: Any) -> list[Payload]:
    """The first `count` blocks of a sequence; `name` stands for namespace and tokens."""
    root = hashlib.sha256(f"root {name}".encode()).digest()
    chain, payloads = root, []
    for number in range(count):
        chain = hashlib.sha256(chain + number.to_bytes(4, "little")).digest()
        payloads.append(build_payload(chain, root, first_token=64 * number, **kwargs))
    return payloads


class HandClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + 1e9

    def move(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class Got:
    """What a Get gave: misses by block, and the bytes of the others where they belong."""

    misses: dict[int, int]
    payloads: dict[int, bytearray]
    order: list[tuple[int, int, int]]  # block, offset, length as they came
    frames: list[int]  # data bytes of each frame


class Client:
    """The generated stubs, with the frames put together."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata = ()) -> None:
        self.channel = channel
        self.blocks: Any = block_store_pb2_grpc.BlockStoreStub(channel)
        self.admin: Any = admin_pb2_grpc.AdminStub(channel)
        self.metadata = list(metadata)

    async def put(self, payloads: Iterable[Payload], frame: int = MIB) -> list[Any]:
        reply = await self.blocks.Put(put_frames(payloads, frame), metadata=self.metadata)
        return list(reply.results)

    async def match(self, hashes: Iterable[bytes], **kwargs: Any) -> Any:
        request = pb.MatchRequest(chain_hashes=list(hashes), **kwargs)
        return await self.blocks.Match(request, metadata=self.metadata)

    async def get(self, hashes: Iterable[bytes], **kwargs: Any) -> Got:
        got = Got({}, {}, [], [])
        request = pb.GetRequest(chain_hashes=list(hashes), **kwargs)
        async for frame in self.blocks.Get(request, metadata=self.metadata):
            for answer in frame.blocks:
                if answer.miss:
                    got.misses[answer.block] = answer.miss
                else:
                    got.payloads[answer.block] = bytearray(answer.length)
            at = 0
            for extent in frame.extents:
                piece = frame.data[at : at + extent.length]
                assert len(piece) == extent.length
                got.payloads[extent.block][extent.offset : extent.offset + extent.length] = piece
                got.order.append((extent.block, extent.offset, extent.length))
                at += extent.length
            assert at == len(frame.data)
            got.frames.append(at)
        return got

    async def clear(self, root_hash: bytes = b"") -> Any:
        from packkv_protos.v1 import admin_pb2

        return await self.admin.Clear(
            admin_pb2.ClearRequest(root_hash=root_hash), metadata=self.metadata
        )

    async def quotas(self) -> Any:
        from packkv_protos.v1 import admin_pb2

        return await self.admin.Quotas(admin_pb2.QuotasRequest(), metadata=self.metadata)

    async def stats(self) -> Any:
        from packkv_protos.v1 import admin_pb2

        return await self.admin.Stats(admin_pb2.StatsRequest(), metadata=self.metadata)


def put_frames(payloads: Iterable[Payload], frame: int = MIB) -> Iterator[Any]:
    for payload in payloads:
        yield pb.PutFrame(
            starts=[pb.BlockStart(chain_hash=payload.chain_hash, length=len(payload.data))]
        )
        for at in range(0, len(payload.data), frame):
            yield pb.PutFrame(data=payload.data[at : at + frame])


def small_config(**kwargs: Any) -> StoreConfig:
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "ram_bytes": 16 * MIB,
        "disk_bytes": 32 * MIB,
    }
    return StoreConfig(**(values | {"grace_seconds": 1.0} | kwargs))


@asynccontextmanager
async def serving(config: StoreConfig, clock: Clock | None = None) -> AsyncIterator[App]:
    """A real server in this process."""
    app = App(config, clock)
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


@asynccontextmanager
async def connected(address: str, metadata: Metadata = ()) -> AsyncIterator[Client]:
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # a port may be used again at once by the next server
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield Client(channel, metadata)


@dataclass
class Process:
    """A server that was started as users start it."""

    popen: "subprocess.Popen[str]"
    address: str

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(60)

    def terminate(self) -> int:
        self.popen.terminate()
        return self.popen.wait(60)


@contextmanager
def server_process(*flags: str) -> Iterator[Process]:
    """A server on a free port; what it logs is shown with a test that fails."""
    # with a preexec_fn this process would be forked, whose gRPC has threads: the child may die
    popen = subprocess.Popen(
        [sys.executable, "-m", "packkv_store", "--listen", "127.0.0.1:0", *flags],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    try:
        assert popen.stdout is not None
        line = popen.stdout.readline()
        assert line.startswith("packkv-store listening on "), line
        yield Process(popen, line.rsplit(" ", 1)[1].strip())
    finally:
        popen.kill()
        popen.wait(60)
        assert popen.stdout is not None
        popen.stdout.close()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def app(clock: HandClock) -> AsyncIterator[App]:
    async with serving(small_config(), clock) as running:
        yield running


@pytest.fixture
async def client(app: App) -> AsyncIterator[Client]:
    async with connected(app.address) as opened:
        yield opened
