"""Real Redis processes on free loopback ports, each with a directory of its own."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

MASTERS = 3
SLOTS = 16_384
WAIT_SECONDS = 60.0


# Below those that a system gives to whoever connects: a port that waits for its server, or for the
# second start of one, is taken by nobody else. Each is given out once; two test runs begin apart.
_PORTS = itertools.count(7919 * os.getpid())


def free_port() -> int:
    while True:
        port = 20_000 + next(_PORTS) % 12_000
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def eventually(holds: Callable[[], Any], what: str) -> Any:
    """What `holds` answers as soon as that is true."""
    ends_at = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < ends_at:
        with suppress(redis.RedisError, OSError):
            if answer := holds():
                return answer
        time.sleep(0.02)
    raise AssertionError(f"not within {WAIT_SECONDS:g} s: {what}")


@dataclass
class RedisProcess:
    """One redis-server. `connect` holds what a client needs beyond host and port."""

    folder: Path
    flags: Sequence[str] = ()
    connect: dict[str, Any] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    popen: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Empty, as nothing is ever saved."""
        command = [
            *("redis-server", "--bind", "127.0.0.1", "--dir", str(self.folder)),
            *("--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning"),
            *("--unixsocket", str(self.folder / "s"), *self._port_flags(), *self.flags),
        ]
        self.popen = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        eventually(lambda: self.client().ping(), "redis-server answers")

    def kill(self) -> None:
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait(60)
            self.popen = None

    def pause(self) -> None:
        self._send(signal.SIGSTOP)

    def go_on(self) -> None:
        self._send(signal.SIGCONT)

    def client(self) -> Any:
        """A client of the test's own; it is closed when it is collected."""
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=60, **self.connect)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _send(self, number: signal.Signals) -> None:
        assert self.popen is not None
        self.popen.send_signal(number)

    def _port_flags(self) -> list[str]:
        if "ssl" in self.connect:
            return ["--port", "0", "--tls-port", str(self.port)]
        return ["--port", str(self.port)]


@dataclass
class Deployment:
    """The servers behind one URL."""

    url: str
    servers: list[RedisProcess]

    def empty(self) -> None:
        for server in self.servers:
            with suppress(redis.ReadOnlyError):
                server.client().flushall()

    def keys(self) -> int:
        return sum(server.client().dbsize() for server in self.servers)


@contextmanager
def redis_process(flags: Sequence[str] = (), **connect: Any) -> Iterator[RedisProcess]:
    # a Unix socket's path may have 107 bytes, which pytest's folders come near to
    folder = Path(tempfile.mkdtemp(prefix="pkv-"))
    server = RedisProcess(folder, flags, connect)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def deployment(kind: str, folder: Path) -> Iterator[Deployment]:
    """Redis as `kind` says: server, unix, acl, tls, sentinel or cluster."""
    make = {
        "server": _server,
        "unix": _unix,
        "acl": _acl,
        "tls": _tls,
        "sentinel": _sentinel,
        "cluster": _cluster,
    }[kind]
    with make(folder) as made:
        yield made


@contextmanager
def _server(folder: Path) -> Iterator[Deployment]:
    with redis_process() as server:
        yield Deployment(f"redis://{server.address}", [server])


@contextmanager
def _unix(folder: Path) -> Iterator[Deployment]:
    with redis_process() as server:
        yield Deployment(f"unix://{server.folder}/s?db=3", [server])


@contextmanager
def _acl(folder: Path) -> Iterator[Deployment]:
    # no more than docs/operations.md asks for
    rights = "on >p@ss/word ~* -@all +get +set +del +mget +eval +sadd +srem +smembers +scan +select"
    with redis_process() as server:
        client = server.client()
        client.execute_command("ACL", "SETUSER", "packkv", *rights.split())
        client.execute_command("ACL", "SETUSER", "tests", "on", ">test", "~*", "+@all")
        client.execute_command("ACL", "SETUSER", "default", "off")
        server.connect = {"username": "tests", "password": "test"}
        yield Deployment(f"redis://packkv:p%40ss%2Fword@{server.address}/2", [server])


@contextmanager
def _tls(folder: Path) -> Iterator[Deployment]:
    cert, key = make_certificate(folder)
    flags = ["--tls-cert-file", str(cert), "--tls-key-file", str(key)]
    flags += ["--tls-ca-cert-file", str(cert), "--tls-auth-clients", "yes"]
    own = {"ssl_ca_certs": str(cert), "ssl_certfile": str(cert), "ssl_keyfile": str(key)}
    with redis_process(flags, ssl=True, **own) as server:
        url = f"rediss://{server.address}?ca={cert}&cert={cert}&key={key}"
        yield Deployment(url, [server])


@contextmanager
def _sentinel(folder: Path) -> Iterator[Deployment]:
    with redis_process() as master:
        flags = ["--replicaof", "127.0.0.1", str(master.port), "--repl-diskless-sync-delay", "0"]
        with redis_process(flags) as replica, _sentinel_process(master, folder) as port:
            yield Deployment(f"redis+sentinel://127.0.0.1:{port}/blocks", [master, replica])


@contextmanager
def _sentinel_process(master: RedisProcess, folder: Path) -> Iterator[int]:
    port = free_port()
    config = folder / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor blocks 127.0.0.1 {master.port} 1\n"
        "sentinel down-after-milliseconds blocks 500\n"
        "sentinel failover-timeout blocks 3000\n"
    )
    command = ["redis-server", str(config), "--sentinel"]
    popen = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        asked: Any = redis.Redis(host="127.0.0.1", port=port, socket_timeout=60)
        eventually(lambda: asked.execute_command("SENTINEL REPLICAS", "blocks"), "sentinel knows")
        yield port
    finally:
        popen.kill()
        popen.wait(60)


@contextmanager
def _cluster(folder: Path) -> Iterator[Deployment]:
    with ExitStack() as stack:
        masters = []
        for _ in range(MASTERS):
            flags = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
            flags += ["--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no"]
            masters.append(stack.enter_context(redis_process(flags)))
        for number, master in enumerate(masters):
            first, end = number * SLOTS // MASTERS, (number + 1) * SLOTS // MASTERS
            client = master.client()
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            if number > 0:
                bus = masters[0].flags[3]
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", masters[0].port, bus)
        eventually(lambda: all(map(_is_whole, masters)), "the cluster is whole")
        addresses = ",".join(master.address for master in masters)
        yield Deployment(f"redis+cluster://{addresses}", masters)


def _is_whole(master: RedisProcess) -> bool:
    said = master.client().execute_command("CLUSTER", "INFO")
    wanted = (b"cluster_state:ok", b"cluster_slots_assigned:%d" % SLOTS)
    return all(line in said for line in wanted)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that is its own authority, for servers and clients."""
    cert, key = folder / "redis.pem", folder / "redis.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key
