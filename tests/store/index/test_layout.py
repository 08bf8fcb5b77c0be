"""What lies where in Redis."""

import os
from collections import Counter

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from packkv_store.block import BlockKey, TierName
from packkv_store.index.redis.layout import (
    SHARD_TAGS,
    SHARDS,
    block_key_in,
    epoch_key,
    heartbeat_key,
    holders,
    mark_of,
    redis_key,
    shard_of,
    tag_of,
)

KEYS = [BlockKey(os.urandom(48)) for _ in range(6400)]


def test_every_64th_of_the_slots_has_one_shard() -> None:
    width = REDIS_CLUSTER_HASH_SLOTS // SHARDS
    slots = [key_slot(epoch_key(shard)) for shard in range(SHARDS)]
    assert [slot // width for slot in slots] == list(range(SHARDS))


def test_blocks_are_spread_evenly_and_lie_with_their_shard() -> None:
    counts = Counter(map(shard_of, KEYS))
    assert len(counts) == SHARDS
    assert max(counts.values()) < 3 * min(counts.values())
    for key in KEYS[:100]:
        assert key_slot(redis_key(key)) == key_slot(epoch_key(shard_of(key)))
        assert tag_of(redis_key(key)) == SHARD_TAGS[shard_of(key)]


def test_a_key_is_read_back_and_no_other_name_is_taken_for_one() -> None:
    for key in KEYS[:100]:
        assert block_key_in(redis_key(key)) == key
    mark = mark_of("a")
    for name in (epoch_key(3), heartbeat_key(mark), b"", bytes(52), redis_key(KEYS[0])[:-1]):
        assert block_key_in(name) is None


def test_a_value_names_nodes_and_tiers() -> None:
    a, b = mark_of("a"), mark_of("b")
    value = a + b"\x03" + b + b"\x02"
    read = [(mark, list(tiers)) for mark, tiers in holders(value)]
    assert read == [(a, [TierName.RAM, TierName.DISK]), (b, [TierName.DISK])]
    assert list(holders(value[:5])) == []
