"""The server as users start it, stop it and kill it."""

import asyncio
import random
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import grpc
import pytest

from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.__main__ import read_config
from packkv_store.config import StoreConfig, parse_size
from packkv_store.errors import ConfigError
from tests.store.conftest import (
    Client,
    Payload,
    build_prefix,
    connected,
    put_frames,
    server_process,
)

DOCS = Path(__file__).parents[2] / "docs"


def hashes_of(payloads: list[Payload]) -> list[bytes]:
    return [payload.chain_hash for payload in payloads]


@pytest.mark.parametrize("seed", range(6))
async def test_a_kill_during_put_leaves_what_was_answered_and_nothing_torn(
    tmp_path: Path, seed: int
) -> None:
    flags = ["--ram-bytes", "16MiB", "--data-dir", str(tmp_path), "--disk-bytes", "64MiB"]
    answered = build_prefix("answered", 5, section_bytes=20_000)
    torn = build_prefix("torn", 40, section_bytes=20_000)
    last = random.Random(seed).randrange(400)
    with server_process(*flags) as torn_off:
        async with connected(torn_off.address) as client:
            results = await client.put(answered)
            assert {result.status for result in results} == {pb.PUT_STATUS_STORED}

            async def frames() -> AsyncIterator[Any]:
                for number, frame in enumerate(put_frames(torn, 16_384)):
                    if number >= last:
                        torn_off.popen.send_signal(signal.SIGKILL)
                    yield frame

            with pytest.raises(grpc.aio.AioRpcError):
                await client.blocks.Put(frames())
        torn_off.popen.wait(60)
    with server_process(*flags) as server:
        async with connected(server.address) as client:
            got = await client.get(hashes_of(answered))
            assert [got.payloads[i] for i in range(5)] == [p.data for p in answered]
            # of the torn stream any whole blocks may be there, and each of them is whole
            got = await client.get(hashes_of(torn))
            assert set(got.misses.values()) <= {pb.MISS_REASON_ABSENT}
            for number, data in got.payloads.items():
                assert data == torn[number].data
            assert len(got.payloads) <= last // 9 + 1
            stats = await client.stats()
            assert stats.counters['packkv_corrupt_blocks_total{tier="disk"}'] == 0


async def test_sigterm_ends_running_calls_well_and_the_process_with_zero(tmp_path: Path) -> None:
    prefix = build_prefix("a", 3)
    flags = ["--ram-bytes", "8MiB", "--data-dir", str(tmp_path), "--grace-seconds", "60"]
    with server_process(*flags) as server:
        async with connected(server.address) as client, connected(server.address) as other:
            leaving = asyncio.Event()

            async def frames() -> AsyncIterator[Any]:
                for number, frame in enumerate(put_frames(prefix)):
                    yield frame
                    if number == 1:
                        await leaving.wait()

            call = asyncio.ensure_future(_put(client.blocks, frames()))
            await has(other, prefix[0])
            server.popen.terminate()
            await refuses(other)
            leaving.set()
            reply = await call
            assert [r.status for r in reply.results] == [pb.PUT_STATUS_STORED] * 3
        assert server.popen.wait(60) == 0
    with server_process("--ram-bytes", "8MiB", "--data-dir", str(tmp_path)) as server:
        async with connected(server.address) as client:
            assert (await client.match(hashes_of(prefix))).blocks == 3
        server.popen.send_signal(signal.SIGINT)
        assert server.popen.wait(60) == 0


async def _put(stub: Any, frames: AsyncIterator[Any]) -> Any:
    return await stub.Put(frames)


async def has(client: Client, block: Payload) -> None:
    """Returns when the server has the block: a Put of it and more is under way."""
    async with asyncio.timeout(60):
        while (await client.match([block.chain_hash])).blocks == 0:
            await asyncio.sleep(0.01)


async def refuses(client: Client) -> None:
    """Returns when the server takes no new calls."""
    async with asyncio.timeout(60):
        with suppress(grpc.aio.AioRpcError):
            while await client.stats():
                await asyncio.sleep(0.01)


async def test_a_stalled_call_is_cut_off_after_the_grace() -> None:
    [block] = build_prefix("a", 1)
    with server_process("--ram-bytes", "8MiB", "--grace-seconds", "0.5") as server:
        async with connected(server.address) as client, connected(server.address) as other:

            async def frames() -> AsyncIterator[Any]:
                for frame in put_frames([block]):
                    yield frame
                yield pb.PutFrame(starts=[pb.BlockStart(chain_hash=b"x" * 32, length=1000)])
                await asyncio.Event().wait()

            call = client.blocks.Put(frames())
            await has(other, block)
            # the call itself never ends
            assert await asyncio.to_thread(server.terminate) == 0
            call.cancel()


def run(*flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "packkv_store", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--listen", "0.0.0.0:0"], "write --insecure"),
        (["--listen", "0.0.0.0:0", "--tls-cert", "c", "--tls-key", "k"], "tokens_file"),
        (["--metrics-listen", "0.0.0.0:0"], "metrics_listen"),
        (["--listen", "nowhere"], "is not HOST:PORT"),
        (["--ram-bytes", "8 apples"], "is not a size"),
        (["--ram-bytes", "1KiB"], "the least is 1048576"),
        (["--tls-cert", "cert.pem"], "go together"),
        (["--tokens-file", "/nonexistent"], "tokens_file /nonexistent"),
        (["--config", "/nonexistent"], "config file /nonexistent"),
        (["--log-level", "loud"], "log_level is 'loud'"),
        (["--listen", "127.0.0.1:1", "--ram-bytes", "1MiB", "--data-dir", "/proc/x"], "data_dir"),
    ],
)
def test_a_wrong_setting_ends_the_start_and_says_what_to_do(flags: list[str], says: str) -> None:
    done = run(*flags)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_port_in_use_is_refused() -> None:
    with server_process("--ram-bytes", "1MiB") as server:
        done = run("--ram-bytes", "1MiB", "--listen", server.address)
    assert done.returncode == 2
    assert "cannot listen on" in done.stderr


def test_help_names_every_setting_and_so_do_the_docs() -> None:
    text = run("--help").stdout
    operations = (DOCS / "operations.md").read_text()
    for setting in fields(StoreConfig):
        flag = "--" + setting.name.replace("_", "-")
        assert flag in text
        assert f"`{flag}`" in operations


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "packkv.toml"
    path.write_text('ram_bytes = "2GiB"\nlease_seconds = 7\nsync = false\n')
    config = read_config(["--config", str(path), "--lease-seconds", "9"])
    assert (config.ram_bytes, config.lease_seconds, config.sync) == (2 << 30, 9.0, False)
    assert config.listen == "127.0.0.1:7437"


@pytest.mark.parametrize("line", ["nonsense = 1", 'sync = "no"', 'io_threads = "many"'])
def test_a_wrong_line_in_the_file_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "packkv.toml"
    path.write_text(line)
    with pytest.raises(ConfigError, match=line.split(" ")[0]):
        read_config(["--config", str(path)])


@pytest.mark.parametrize(
    ("text", "size"), [("12", 12), ("1KiB", 1024), ("1.5 GiB", 3 << 29), (7, 7), ("3B", 3)]
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


async def test_metrics_are_served_and_are_those_of_the_docs() -> None:
    from packkv_store.app import App
    from tests.store.conftest import small_config

    app = App(small_config(metrics_listen="127.0.0.1:0"))
    await app.start()
    try:
        url = f"http://127.0.0.1:{app.metrics_port}/metrics"
        text = await asyncio.to_thread(_read, url)
    finally:
        await app.stop()
    operations = (DOCS / "operations.md").read_text()
    names = {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert "packkv_misses_total" in names
    for name in names - {name for name in names if name.endswith("_created")}:
        assert f"`{name}`" in operations, name
    assert 'packkv_misses_total{reason="corrupt"} 0.0' in text


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as reply:
        text: str = reply.read().decode()
        return text
