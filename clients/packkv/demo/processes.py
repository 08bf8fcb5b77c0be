"""The demo's processes: a store and workers, bounded in time and gone at the end."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from packkv.demo.messages import Answered, Compared, Ready
from packkv.errors import PackKVError

_LISTENING = "packkv-store listening on "


class ProcessFailed(PackKVError):
    """A process ended, stayed silent, or said that it could not; the message quotes its log."""


class Child:
    """A child process that speaks in lines on stdout; what it writes to stderr goes to a log.

    It gets a session of its own: Ctrl-C reaches the parent, and the parent ends its children.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name = name
        self._log = folder / f"{name.replace(' ', '-')}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(),
                start_new_session=True,
            )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name=f"read {name}", daemon=True)
        self._reader.start()

    def tell(self, line: str) -> None:
        """Write one line to the child's stdin."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            # it is gone: the next `hear` says why
            pass

    def hear(self, timeout_s: float) -> str:
        """The next line of the child's stdout.

        Raises:
            ProcessFailed: it ended, or there was none in time.
        """
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise ProcessFailed(
                f"{self.name} said nothing for {timeout_s:.0f} s{self._last_words()}"
            ) from None
        if line is None:
            status = self.process.wait()
            raise ProcessFailed(f"{self.name} ended with status {status}{self._last_words()}")
        return line

    def stop(self, grace_s: float = 10.0) -> None:
        """Ask it to end, then make it; nothing of it is left when this returns."""
        self._ask_to_end()
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _ask_to_end(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return "; the end of its log:\n  " + "\n  ".join(lines[-8:]) if lines else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class StoreProcess(Child):
    """A node of a store on a free port, with RAM and disk tier in a folder of its own.

    Args:
        folder: of its data and its log.
        ram_bytes: size of its RAM tier, as the store spells sizes.
        index: "embedded" for a node that is alone, or the URL of a Redis.
        name: for people, and of its files.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ram_bytes: str = "1GiB",
        index: str = "embedded",
        name: str = "the store",
        timeout_s: float = 60.0,
    ) -> None:
        data = folder / f"{name.replace(' ', '-')}.data"
        command = [sys.executable, "-m", "packkv_store", "--listen", "127.0.0.1:0"]
        command += ["--ram-bytes", ram_bytes, "--data-dir", str(data), "--index", index]
        super().__init__(name, command, folder)
        try:
            self.address = self._listening(timeout_s)
        except BaseException:
            self.stop()
            raise

    def _listening(self, timeout_s: float) -> str:
        while not (line := self.hear(timeout_s)).startswith(_LISTENING):
            pass
        return line.removeprefix(_LISTENING).strip()


class WorkerProcess(Child):
    """A worker of `packkv.demo.worker_process`; call `ready` before the first request.

    Args:
        name: for people, and of its log in `folder`.
        store: address; None shares nothing.
        tenant_salt: only workers with the same one share blocks.
        deadline_s: how long a load may take; None leaves it to the SDK.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        model: Path,
        codec: str,
        store: str | None,
        *,
        tenant_salt: str = "",
        deadline_s: float | None = None,
    ) -> None:
        command = [sys.executable, "-m", "packkv.demo.worker_process"]
        command += ["--model", str(model), "--codec", codec, "--tenant-salt", tenant_salt]
        command += ["--store", store] if store is not None else []
        command += ["--deadline-s", str(deadline_s)] if deadline_s is not None else []
        super().__init__(name, command, folder)

    def ready(self, timeout_s: float = 300.0) -> Ready:
        """Wait until the model is loaded and warm."""
        return Ready(**self._reply(timeout_s))

    def answer(
        self,
        prompt: Sequence[int],
        new_tokens: int,
        *,
        publish: bool = False,
        timeout_s: float = 600.0,
    ) -> Answered:
        """Ask for a greedy answer; with `publish`, the store has the blocks when this returns."""
        self.send("answer", prompt=prompt, new_tokens=new_tokens, publish=publish)
        return self.answered(timeout_s)

    def compare(
        self, prompt: Sequence[int], new_tokens: int, *, timeout_s: float = 600.0
    ) -> Compared:
        """Ask for the exact run of the prompt, compared with the packed one."""
        self.send("compare", prompt=prompt, new_tokens=new_tokens)
        return Compared(**self._reply(timeout_s))

    def send(self, request: str, **values: object) -> None:
        """Send a request without waiting for its answer."""
        self.tell(json.dumps({"request": request, **values}))

    def answered(self, timeout_s: float) -> Answered:
        """Wait for the answer to the "answer" request under way."""
        return Answered(**self._reply(timeout_s))

    def _reply(self, timeout_s: float) -> dict[str, Any]:
        """The next reply.

        Raises:
            ProcessFailed: the worker ended, stayed silent, or could not do what was asked.
        """
        reply: dict[str, Any] = json.loads(self.hear(timeout_s))
        if "error" in reply:
            raise ProcessFailed(f"{self.name}: {reply['error']}{self._last_words()}")
        return reply

    def _ask_to_end(self) -> None:
        # the end of its input is its word to leave, after the request under way
        assert self.process.stdin is not None
        self.process.stdin.close()


def _environment() -> dict[str, str]:
    settings = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # threads that spin while they wait make a worker 5 to 10 times slower on a machine that
        # has other work, and hardly faster on one that has not
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    # the current directory must not become importable: see the Makefile
    return {**os.environ, **settings, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
