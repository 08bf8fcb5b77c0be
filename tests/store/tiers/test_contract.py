"""Every tier keeps the same contract."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packkv_store.block import ChainHash, block_key
from packkv_store.tiers import Tier
from packkv_store.tiers.disk import DiskTier
from packkv_store.tiers.extents import PAGE, Extent, Extents, extent_size
from packkv_store.tiers.ram import RamTier
from tests.store.conftest import MIB, HandClock, build_prefix

CAPACITY = 2 * MIB


@pytest.fixture(params=[RamTier, DiskTier], ids=lambda tier: tier.__name__)
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tier]:
    made = RamTier(CAPACITY)
    disk = DiskTier(tmp_path, CAPACITY, HandClock())
    yield made if request.param is RamTier else disk
    made.close()
    disk.close()


@pytest.mark.parametrize("length", [1, 4095, 4096, 4097, 300_001])
def test_bytes_come_back_as_they_were(tier: Tier, length: int) -> None:
    payload = memoryview(bytes(i * 7 % 251 for i in range(length)))
    extent = tier.reserve(length)
    assert extent is not None
    tier.write(block_key(bytes(16), ChainHash(bytes(32))), extent, payload, 1.0)
    whole, middle = bytearray(length), bytearray(length // 3)
    tier.read(extent, 0, memoryview(whole))
    assert whole == payload
    tier.read(extent, length // 2, memoryview(middle))
    assert middle == payload[length // 2 : length // 2 + length // 3]


def test_neighbours_do_not_touch_each_other(tier: Tier) -> None:
    extents = []
    for number in range(5):
        extent = tier.reserve(5000)
        assert extent is not None
        key = block_key(bytes(16), ChainHash(bytes([number]) * 32))
        tier.write(key, extent, memoryview(bytes([number]) * 5000), 1.0)
        extents.append(extent)
    for number, extent in enumerate(extents):
        into = bytearray(5000)
        tier.read(extent, 0, memoryview(into))
        assert into == bytes([number]) * 5000


def test_a_full_tier_says_so_and_room_given_back_is_room(tier: Tier) -> None:
    taken = []
    while (extent := tier.reserve(100_000)) is not None:
        taken.append(extent)
        assert tier.used_bytes <= tier.capacity_bytes <= CAPACITY
    assert len(taken) >= 0.9 * CAPACITY / extent_size(100_000) - 1
    for extent in taken:
        tier.erase(extent)
        tier.free(extent)
    assert tier.used_bytes == 0
    assert tier.reserve(1_000_000) is not None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 200_000)), max_size=80))
def test_extents_never_overlap_nor_leave_their_space(steps: list[tuple[bool, int]]) -> None:
    space, taken = Extents(MIB), list[Extent]()
    for is_take, number in steps:
        if is_take:
            extent = space.take(number)
            if extent is not None:
                taken.append(extent)
        elif taken:
            space.give(taken.pop(number % len(taken)))
        end = 0
        for extent in sorted(taken):
            assert extent.offset >= end
            assert extent.offset % PAGE == 0
            end = extent.offset + extent.size
        assert end <= MIB
        assert space.used == sum(extent.size for extent in taken)
    for extent in taken:
        space.give(extent)
    assert space.take(MIB) == Extent(0, MIB)


@given(st.integers(1, 1 << 32))
def test_rounding_costs_at_most_a_page_or_a_sixteenth(length: int) -> None:
    assert length <= extent_size(length) < length + max(PAGE, length / 16 + PAGE)


class TestRestart:
    """What only the disk tier promises."""

    def fill(self, tier: DiskTier, count: int) -> list[Extent]:
        extents = []
        for payload in build_prefix("disk", count):
            extent = tier.reserve(len(payload.data))
            assert extent is not None
            key = block_key(bytes(16), ChainHash(payload.chain_hash))
            tier.write(key, extent, memoryview(payload.data), 5.0)
            extents.append(extent)
        return extents

    def reopened(self, tmp_path: Path, capacity: int = CAPACITY) -> tuple[set[bytes], int]:
        tier = DiskTier(tmp_path, capacity, HandClock())
        found, lost = tier.recover()
        tier.close()
        return {kept.key[16:] for kept in found}, lost

    def test_blocks_are_found_again_but_not_erased_ones(self, tmp_path: Path) -> None:
        tier = DiskTier(tmp_path, CAPACITY, HandClock())
        extents = self.fill(tier, 6)
        tier.erase(extents[2])
        tier.close()
        hashes = [payload.chain_hash for payload in build_prefix("disk", 6)]
        assert self.reopened(tmp_path) == (set(hashes) - {hashes[2]}, 0)

    def test_bytes_without_a_row_do_not_exist(self, tmp_path: Path) -> None:
        tier = DiskTier(tmp_path, CAPACITY, HandClock())
        assert tier.reserve(10_000) is not None
        tier.close()
        assert self.reopened(tmp_path) == (set(), 0)

    def test_a_smaller_capacity_drops_what_lies_beyond(self, tmp_path: Path) -> None:
        tier = DiskTier(tmp_path, CAPACITY, HandClock())
        self.fill(tier, 100)
        tier.close()
        found, lost = self.reopened(tmp_path, CAPACITY // 4)
        assert 0 < len(found) < 100
        assert len(found) + lost == 100

    @pytest.mark.parametrize("name", ["blocks", "table"])
    def test_any_truncation_loses_blocks_and_invents_none(self, tmp_path: Path, name: str) -> None:
        hashes = {payload.chain_hash for payload in build_prefix("disk", 8)}
        for place in range(1, 9):
            folder = tmp_path / str(place)
            tier = DiskTier(folder, CAPACITY, HandClock())
            self.fill(tier, 8)
            tier.close()
            path = folder / name
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size * place // 9 - 3)
            found, _ = self.reopened(folder)
            assert found < hashes

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def test_a_flipped_byte_in_the_table_invents_nothing(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        folder = tmp_path_factory.mktemp("table")
        tier = DiskTier(folder, CAPACITY, HandClock())
        self.fill(tier, 8)
        tier.close()
        raw = bytearray((folder / "table").read_bytes())
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
        (folder / "table").write_bytes(raw)
        hashes = {payload.chain_hash for payload in build_prefix("disk", 8)}
        found, lost = self.reopened(folder)
        assert found < hashes
        assert (len(found), lost) == (7, 1)

    def test_of_two_rows_for_the_same_bytes_the_later_wins(self, tmp_path: Path) -> None:
        tier = DiskTier(tmp_path, CAPACITY, HandClock())
        [extent] = self.fill(tier, 1)
        stale = (tmp_path / "table").read_bytes()
        tier.erase(extent)
        tier.free(extent)
        payload = build_prefix("later", 1)[0]
        again = tier.reserve(len(payload.data))
        assert again is not None
        key = block_key(bytes(16), ChainHash(payload.chain_hash))
        tier.write(key, again, memoryview(payload.data), 6.0)
        tier.close()
        # as after a power cut that kept the new bytes and both rows
        with (tmp_path / "table").open("ab") as file:
            file.write(stale)
        assert self.reopened(tmp_path) == ({payload.chain_hash}, 1)
