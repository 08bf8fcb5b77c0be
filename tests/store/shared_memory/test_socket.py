"""Where the socket of the shared-memory path is, and what is left of it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store.errors import ConfigError
from packkv_store.tiers import ram
from tests.store.conftest import connected, serving, small_config


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / f"packkv-{os.getuid()}"


async def offered(address: str) -> str:
    async with connected(address) as client:
        reply = await client.blocks.Paths(pb.PathsRequest())
    assert len(reply.nonce) == 16
    path: str = reply.shared_memory_socket
    return path


async def test_by_itself_it_is_in_a_directory_of_the_user_alone(run_directory: Path) -> None:
    async with serving(small_config()) as app:
        path = Path(await offered(app.address))
        assert path.parent == run_directory
        assert path.is_socket()
        assert run_directory.stat().st_mode & 0o777 == 0o700
    assert list(run_directory.iterdir()) == []


async def test_two_servers_have_two_sockets(run_directory: Path) -> None:
    async with serving(small_config()) as one, serving(small_config()) as other:
        assert await offered(one.address) != await offered(other.address)


async def test_what_a_killed_server_left_is_removed(run_directory: Path) -> None:
    run_directory.mkdir(mode=0o700)
    dead = run_directory / "1-00000000.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(dead))
    (run_directory / "note.txt").touch()
    async with serving(small_config()) as app:
        assert not dead.exists()
        assert Path(await offered(app.address)).exists()
    assert [path.name for path in run_directory.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
async def test_a_directory_that_others_could_have_made_is_not_used(
    run_directory: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "a file":
        run_directory.touch()
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        run_directory.symlink_to(tmp_path / "elsewhere")
    else:
        run_directory.mkdir()
        run_directory.chmod(0o755)
    async with serving(small_config()) as app:
        assert await offered(app.address) == ""


async def test_it_can_be_named_and_turned_off(tmp_path: Path) -> None:
    path = tmp_path / "named.sock"
    async with serving(small_config(shared_memory=str(path))) as app:
        assert await offered(app.address) == str(path)
        with pytest.raises(ConfigError, match="shared_memory"):
            async with serving(small_config(shared_memory=str(path))):
                pass
    assert not path.exists()
    async with serving(small_config(shared_memory="off")) as app:
        assert await offered(app.address) == ""


async def test_a_start_that_fails_leaves_no_socket(run_directory: Path) -> None:
    async with serving(small_config()) as app:
        with pytest.raises(ConfigError, match="cannot listen"):
            async with serving(small_config(listen=app.address)):
                pass
        assert [str(path) for path in run_directory.iterdir()] == [await offered(app.address)]


async def test_a_name_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "a.sock", tmp_path / ("x" * 120)):
        with pytest.raises(ConfigError, match="shared_memory"):
            async with serving(small_config(shared_memory=str(path))):
                pass


async def test_memory_that_cannot_be_sealed_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    # a seal that no kernel knows
    monkeypatch.setattr(ram, "F_SEAL_FUTURE_WRITE", 1 << 30)
    async with serving(small_config()) as app:
        assert await offered(app.address) == ""
