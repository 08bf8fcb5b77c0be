"""What a disk tier does when the system has no room for it, though its capacity is not reached."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from packkv_store.block import BlockKey, ChainHash, block_key
from packkv_store.errors import TierFailure
from packkv_store.tiers.disk import DiskTier
from packkv_store.tiers.extents import PAGE
from tests.store.conftest import MIB, HandClock


class Interrupted(HandClock):
    """Lets another thread's work happen at the moment when somebody asks for the time."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], object] | None = None

    def monotonic(self) -> float:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return self.now


@contextmanager
def files_of(size: int) -> Iterator[None]:
    """The system refuses every byte of a file beyond it, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def key(number: int) -> BlockKey:
    return block_key(bytes(16), ChainHash(bytes([number]) * 32))


def test_room_asked_for_while_the_disk_is_found_full_does_not_forget_it(tmp_path: Path) -> None:
    clock = Interrupted()
    tier = DiskTier(tmp_path, 8 * MIB, clock)
    first, second = tier.reserve(10 * PAGE), tier.reserve(10 * PAGE)
    assert first is not None
    assert second is not None
    tier.write(key(1), first, memoryview(bytes(10 * PAGE)), 1.0)
    # another block's room, asked for by the event loop while this write fails in a thread
    clock.meanwhile = lambda: tier.reserve(PAGE)
    with files_of(10 * PAGE), pytest.raises(TierFailure):
        tier.write(key(2), second, memoryview(bytes(10 * PAGE)), 1.0)
    assert tier.capacity_bytes == 10 * PAGE
    tier.free(second)
    assert tier.reserve(PAGE) is None
    clock.move(31)
    assert tier.reserve(PAGE) is not None
    tier.close()


def test_a_row_that_was_never_written_needs_no_room_to_be_cleared(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 8 * MIB, HandClock())
    extent = tier.reserve(PAGE)
    assert extent is not None
    with files_of(0):
        with pytest.raises(TierFailure):
            tier.write(key(1), extent, memoryview(bytes(PAGE)), 1.0)
        tier.erase(extent)
    tier.free(extent)
    assert tier.used_bytes == 0
    tier.close()


def test_a_row_that_was_written_is_cleared_or_it_is_an_error(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 8 * MIB, HandClock())
    extent = tier.reserve(PAGE)
    assert extent is not None
    tier.write(key(1), extent, memoryview(bytes(PAGE)), 1.0)
    with files_of(0), pytest.raises(TierFailure, match="disk table"):
        tier.erase(extent)
    tier.erase(extent)
    assert not any((tmp_path / "table").read_bytes())
    tier.close()
