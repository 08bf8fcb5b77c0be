"""Every index keeps the same contract."""

import pytest

from packkv_store.block import BlockKey, TierName
from packkv_store.index import Index, Location
from packkv_store.index.embedded import EmbeddedIndex

KEYS = [BlockKey(bytes([number]) * 48) for number in range(6)]
RAM = Location("a", TierName.RAM)
DISK = Location("a", TierName.DISK)
OTHER = Location("b", TierName.RAM)


@pytest.fixture(params=[EmbeddedIndex], ids=lambda index: index.__name__)
def index(request: pytest.FixtureRequest) -> Index:
    made: Index = request.param()
    return made


async def test_a_run_ends_at_the_first_unknown_block(index: Index) -> None:
    await index.publish(KEYS[:3] + KEYS[4:], RAM)
    assert await index.locate(KEYS) == [(RAM,)] * 3
    assert await index.locate(KEYS[3:]) == []
    assert await index.locate([]) == []


async def test_a_block_has_all_its_locations_once(index: Index) -> None:
    for location in (RAM, DISK, RAM, OTHER):
        await index.publish(KEYS[:1], location)
    [found] = await index.locate(KEYS[:1])
    assert sorted(found) == sorted((RAM, DISK, OTHER))


async def test_what_is_withdrawn_everywhere_is_gone(index: Index) -> None:
    await index.publish(KEYS, RAM)
    await index.publish(KEYS[:1], DISK)
    await index.withdraw(KEYS, RAM)
    await index.withdraw(KEYS, OTHER)
    assert await index.locate(KEYS) == [(DISK,)]
    await index.withdraw(KEYS, DISK)
    assert await index.locate(KEYS) == []
