"""A disk that is smaller than the store was told, on every path: it evicts, refuses, goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from packkv.client import PutStatus
from tests.e2e.faults.conftest import Connect, StartStore, contents, named, names
from tests.store.conftest import build_prefix

pytestmark = pytest.mark.timeout(600)

DISK = 6 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with room for 6 MiB and no more; tests/store has one for everybody."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_evicts_and_goes_on_and_keeps_what_was_stored_last(
    small_disk: Path, start_store: StartStore, connect: Connect
) -> None:
    flags = ("--ram-bytes", "4MiB", "--disk-bytes", "64MiB")
    store = start_store(*flags, data_dir=small_disk)
    client = connect(store.target)
    for number in range(10):
        prefix = build_prefix(str(number), 16, section_bytes=12_000)
        results = client.put(named(prefix))
        assert [result.reason for result in results] == [""] * len(prefix)
        assert {result.status for result in results} == {PutStatus.STORED}
        assert contents(client.get(names(prefix))) == [block.data for block in prefix]
    counters = client.stats().counters
    assert counters['packkv_tier_failures_total{tier="disk"}'] > 0
    assert counters['packkv_evictions_total{tier="disk"}'] > 0
    store.kill()
    store.start(store.target)
    client = connect(store.target)
    assert contents(client.get(names(prefix))) == [block.data for block in prefix]
    assert client.stats().counters['packkv_corrupt_blocks_total{tier="disk"}'] == 0


def test_when_somebody_else_takes_the_disk_blocks_are_refused_until_there_is_room(
    small_disk: Path, start_store: StartStore, connect: Connect
) -> None:
    store = start_store("--ram-bytes", "4MiB", "--disk-bytes", "64MiB", data_dir=small_disk)
    client = connect(store.target)
    room = os.statvfs(small_disk)
    hog = small_disk / "somebody-else"
    hog.write_bytes(bytes((room.f_bavail - 2) * room.f_bsize))
    prefix = build_prefix("a", 4, section_bytes=12_000)
    results = client.put(named(prefix))
    assert {result.status for result in results} == {PutStatus.REJECTED}
    assert all(result.reason for result in results)
    assert contents(client.get(names(prefix))) == [None] * 4
    # nothing half written is left in either tier
    assert [tier.used_bytes for tier in client.stats().tiers] == [0, 0]
