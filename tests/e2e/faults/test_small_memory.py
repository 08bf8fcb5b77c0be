"""Puts far larger than the RAM tier: each block is stored, however many are under way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from packkv.client import PutStatus
from tests.e2e.faults.conftest import Connect, StartStore, contents, named, names
from tests.store.conftest import Payload, build_prefix

pytestmark = pytest.mark.timeout(600)


def test_blocks_of_a_put_make_room_for_those_after_them(
    start_store: StartStore, connect: Connect
) -> None:
    client = connect(start_store("--ram-bytes", "1MiB").target)
    for number in range(6):
        prefix = build_prefix(str(number), 40, section_bytes=8_000)
        # four times the memory, much of it verified and written at one time
        assert sum(len(block.data) for block in prefix) > 1.8 * (1 << 20)
        results = client.put(named(prefix))
        assert [result.reason for result in results] == [""] * 40
        assert {result.status for result in results} == {PutStatus.STORED}


def test_two_puts_at_a_time_share_what_room_there_is(
    start_store: StartStore, connect: Connect
) -> None:
    client = connect(start_store("--ram-bytes", "2MiB").target)

    def put(prefix: list[Payload]) -> set[PutStatus]:
        return {result.status for result in client.put(named(prefix))}

    prefixes = [build_prefix(str(number), 30, section_bytes=8_000) for number in range(6)]
    with ThreadPoolExecutor(2) as threads:
        statuses = list(threads.map(put, prefixes))
    # what finds no room is refused at once: it waits for nobody, and takes nothing with it
    assert all(one <= {PutStatus.STORED, PutStatus.REJECTED} for one in statuses)
    for prefix in prefixes:
        assert put(prefix) <= {PutStatus.STORED, PutStatus.ALREADY_PRESENT}
        assert contents(client.get(names(prefix))[:3]) == [block.data for block in prefix[:3]]
