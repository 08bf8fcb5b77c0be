"""A real server in a process of its own, a puppet server that can lie, and payloads to move."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from packkv.client import Client, ClientConfig, Store
from packkv.client.paths import bulk_links, choice
from packkv.hashing import chain_hashes
from packkv.identity import Namespace
from packkv.prefix_cache import PrefixCache, PrefixCacheConfig, codec_identity
from packkv_kernels.config import CacheShape, CodecConfig, PackKVConfig, RawConfig
from packkv_kernels.entropy import from_cold, to_cold
from packkv_kernels.format import Form
from packkv_kernels.format.payload import KVDtype, PayloadHeader, read_payload, write_payload
from packkv_kernels.testing import encode_payloads, random_kv
from packkv_protos.v1 import block_store_pb2 as pb
from packkv_protos.v1 import block_store_pb2_grpc

READY = "packkv-store listening on "
START_S = 60.0
# for what is not about time: a busy machine is slow, and that is no fault
PATIENT_S = 60.0


@dataclass
class StoreProcess:
    """A `python -m packkv_store` on a free port of loopback."""

    data_dir: Path
    arguments: tuple[str, ...] = ()
    target: str = ""
    process: subprocess.Popen[str] | None = None
    reader: threading.Thread = field(default_factory=threading.Thread)

    def start(self, listen: str = "127.0.0.1:0") -> StoreProcess:
        command = [sys.executable, "-m", "packkv_store", "--listen", listen]
        command += ["--data-dir", str(self.data_dir), "--ram-bytes", str(64 << 20)]
        self.process = subprocess.Popen(
            [*command, *self.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines: queue.Queue[str] = queue.Queue()
        assert self.process.stdout is not None
        self.reader = threading.Thread(target=_read_lines, args=(self.process.stdout, lines))
        self.reader.start()
        said = []
        while True:
            try:
                said.append(lines.get(timeout=START_S))
            except queue.Empty:
                break
            if READY in said[-1]:
                self.target = said[-1].split(READY)[1].split()[0]
                return self
            if said[-1] == "":
                break
        self.kill()
        raise AssertionError("the server did not start: " + "".join(said))

    def pause(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self._ended()

    def stop(self) -> None:
        """The way an operator stops it."""
        assert self.process is not None
        self.process.terminate()
        self._ended()

    def _ended(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.wait(START_S)
        self.reader.join(START_S)
        self.process.stdout.close()


def _read_lines(pipe: Iterator[str], lines: queue.Queue[str]) -> None:
    for line in pipe:
        lines.put(line)
    lines.put("")


@pytest.fixture(autouse=True)
def patient_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that a busy machine opens slowly is waited for, not left for the next one."""
    monkeypatch.setattr(choice, "OPEN_S", PATIENT_S)
    monkeypatch.setattr(bulk_links, "CONNECT_S", PATIENT_S)


@pytest.fixture(scope="session")
def compiled_cold() -> None:
    """Cold coding is compiled: on a fresh machine that takes longer than any load may."""
    keys, values = random_kv(CacheShape(layers=3, heads=2, head_dim=64), 64)
    (payload,) = encode_payloads(keys, values, PackKVConfig())
    cold = read_payload(to_cold(read_payload(payload)))
    assert cold.header.form is Form.COLD
    from_cold(cold)


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    store = StoreProcess(tmp_path_factory.mktemp("store")).start()
    yield store
    store.kill()


@pytest.fixture
def store(shared_store: StoreProcess) -> StoreProcess:
    """A running, empty store. Shared: not to be paused or killed."""
    with Client(shared_store.target) as client:
        client.clear()
    return shared_store


@pytest.fixture
def own_store(tmp_path: Path) -> Iterator[StoreProcess]:
    """A running store that a test may pause, kill and start again."""
    store = StoreProcess(tmp_path / "store").start()
    yield store
    store.kill()


@pytest.fixture
def client(store: StoreProcess) -> Iterator[Client]:
    with Client(store.target) as client:
        yield client


class StreamBroken(Exception):
    """What `PuppetStore.frames` raises to end a stream with a status."""

    def __init__(self, status: grpc.StatusCode) -> None:
        super().__init__(status)
        self.status = status


@dataclass
class PuppetStore(block_store_pb2_grpc.BlockStoreServicer):
    """A real gRPC server that says what a test wants it to say."""

    blocks: dict[bytes, bytes] = field(default_factory=dict)
    tamper: Callable[[bytes], bytes] = bytes
    frames: Callable[[pb.GetRequest], Iterator[pb.GetFrame]] | None = None
    match_reply: Callable[[pb.MatchRequest], pb.MatchReply] | None = None
    before_put: Callable[[], None] | None = None
    refusals: list[grpc.StatusCode] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    metadata: list[tuple[str, str]] = field(default_factory=list)
    target: str = ""

    def Match(self, request: pb.MatchRequest, context: grpc.ServicerContext) -> pb.MatchReply:
        self._begin("Match", context)
        if self.match_reply is not None:
            return self.match_reply(request)
        lengths = []
        for chain_hash in request.chain_hashes:
            if chain_hash not in self.blocks:
                break
            lengths.append(len(self.tamper(self.blocks[chain_hash])))
        return pb.MatchReply(
            blocks=len(lengths), lengths=lengths, tiers=[pb.TIER_RAM] * len(lengths)
        )

    def Get(self, request: pb.GetRequest, context: grpc.ServicerContext) -> Iterator[pb.GetFrame]:
        self._begin("Get", context)
        try:
            yield from (self.frames or self._honest_frames)(request)
        except StreamBroken as broken:
            context.abort(broken.status, "broken by the test")

    def Put(self, frames: Iterator[pb.PutFrame], context: grpc.ServicerContext) -> pb.PutReply:
        self._begin("Put", context)
        if self.before_put is not None:
            self.before_put()
        starts: list[pb.BlockStart] = []
        data = b""
        for frame in frames:
            assert len(frame.data) <= 1 << 20
            starts += frame.starts
            data += frame.data
        names = [start.chain_hash for start in starts]
        for start in starts:
            self.blocks[start.chain_hash], data = data[: start.length], data[start.length :]
        assert data == b""
        stored = pb.PUT_STATUS_STORED
        return pb.PutReply(results=[pb.PutResult(chain_hash=n, status=stored) for n in names])

    def Release(self, request: pb.ReleaseRequest, context: grpc.ServicerContext) -> pb.ReleaseReply:
        self._begin("Release", context)
        return pb.ReleaseReply()

    def _begin(self, name: str, context: grpc.ServicerContext) -> None:
        self.calls.append(name)
        self.metadata = [(key, str(value)) for key, value in context.invocation_metadata()]
        if self.refusals:
            context.abort(self.refusals.pop(0), "refused by the test")

    def _honest_frames(self, request: pb.GetRequest) -> Iterator[pb.GetFrame]:
        payloads = [self.tamper(self.blocks.get(h, b"")) for h in request.chain_hashes]
        answers = [
            pb.BlockAnswer(
                block=i,
                length=len(p),
                miss=pb.MISS_REASON_UNSPECIFIED if p else pb.MISS_REASON_ABSENT,
            )
            for i, p in enumerate(payloads)
        ]
        yield pb.GetFrame(blocks=answers)
        for index, payload in enumerate(payloads):
            for start in range(0, len(payload), 1 << 20):
                data = payload[start : start + (1 << 20)]
                extent = pb.Extent(block=index, offset=start, length=len(data))
                yield pb.GetFrame(extents=[extent], data=data)


@pytest.fixture
def puppet() -> Iterator[PuppetStore]:
    server = grpc.server(ThreadPoolExecutor(8))
    # calls that no test makes stay unimplemented
    puppet = PuppetStore()  # type: ignore[abstract]
    block_store_pb2_grpc.add_BlockStoreServicer_to_server(puppet, server)
    puppet.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield puppet
    server.stop(0).wait()


@pytest.fixture
def puppet_client(puppet: PuppetStore) -> Iterator[Client]:
    with Client(puppet.target, config=ClientConfig(breaker_failures=1000)) as client:
        yield client


@dataclass(frozen=True)
class Worker:
    """One model on one worker: its namespace, its payloads, its prefix cache."""

    namespace: Namespace
    codec: CodecConfig
    shape: CacheShape

    def having(self, **fields: object) -> Worker:
        return replace(self, namespace=replace(self.namespace, **fields))  # type: ignore[arg-type]

    def prefixes(self, client: Store, config: PrefixCacheConfig | None = None) -> PrefixCache:
        config = config or PrefixCacheConfig(deadline_s=PATIENT_S)
        return PrefixCache(client, self.namespace, self.codec, self.shape, config=config)

    def hashes(self, token_ids: list[int]) -> list[bytes]:
        return chain_hashes(self.namespace.root_hash(), token_ids)

    def payload(self, token_ids: list[int], index: int) -> bytes:
        """A sound payload of block `index`; what is in its sections, nobody reads here."""
        profile = self.namespace.profile_digest
        header = PayloadHeader(
            codec=self.codec.codec_id,
            kv_dtype=KVDtype[self.namespace.kv_dtype.upper()],
            tokens=64,
            sinks=self.codec.block_sinks(64 * index, 64),
            layers=self.shape.layers,
            first_head=0,
            heads=self.shape.heads,
            head_dim=self.shape.head_dim,
            root_hash=self.namespace.root_hash(),
            chain_hash=self.hashes(token_ids)[index],
            codec_digest=self.codec.digest,
            profile_digest=bytes.fromhex(profile) if profile else bytes(32),
            first_token=64 * index,
        )
        values = np.random.default_rng(index)
        sections = [values.bytes(16 * (8 + i)) for i in range(header.section_count)]
        return bytes(write_payload(header, sections))

    def blocks(self, token_ids: list[int]) -> list[tuple[int, bytes]]:
        return [(i, self.payload(token_ids, i)) for i in range(len(token_ids) // 64)]


@pytest.fixture
def worker() -> Worker:
    codec = RawConfig()
    namespace = Namespace(
        model="test/model",
        weights_digest="11" * 32,
        adapter_digest=None,
        kv_dtype="float16",
        codec=codec_identity(codec),
        profile_digest=None,
        rope_digest="22" * 32,
    )
    return Worker(namespace, codec, CacheShape(layers=2, heads=2, head_dim=16))
