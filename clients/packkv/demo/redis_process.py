"""The index of a demo with many nodes: a Redis of its own, gone at the end."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from packkv.demo.processes import Child, ProcessFailed
from packkv.errors import ConfigError

_PROGRAM = "redis-server"
_READY = "Ready to accept connections"
# another program may take the port that was free a moment ago
_TRIES = 3


class RedisProcess(Child):
    """An empty Redis on a loopback port, which writes nothing to disk. Use `start_redis`."""

    def __init__(self, folder: Path, port: int, timeout_s: float) -> None:
        command = [_PROGRAM, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
        command += ["--save", "", "--appendonly", "no", "--daemonize", "no", "--logfile", ""]
        super().__init__("Redis", command, folder)
        self.url = f"redis://127.0.0.1:{port}"
        try:
            self._wait(timeout_s)
        except BaseException:
            self.stop()
            raise

    def _wait(self, timeout_s: float) -> None:
        said: list[str] = []
        try:
            while _READY not in (line := self.hear(timeout_s)):
                said.append(line)
        except ProcessFailed as failure:
            # its log is its stdout
            raise ProcessFailed("\n  ".join([str(failure), *said[-4:]])) from failure


def start_redis(folder: Path, timeout_s: float = 30.0) -> RedisProcess:
    """Redis on a free port, ready, with its files in `folder`.

    Raises:
        ConfigError: redis-server is not installed.
        ProcessFailed: it did not start.
    """
    if shutil.which(_PROGRAM) is None:
        raise ConfigError(
            f"--index redis starts a {_PROGRAM}, and none is installed: "
            "apt-get install redis-server, or brew install redis"
        )
    for _ in range(_TRIES - 1):
        try:
            return RedisProcess(folder, _free_port(), timeout_s)
        except ProcessFailed:
            continue
    return RedisProcess(folder, _free_port(), timeout_s)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
