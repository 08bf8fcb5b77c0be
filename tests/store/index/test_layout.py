"""What lies where in Redis."""

import os
from collections import Counter

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from packkv_store.block import BlockKey, TierName
from packkv_store.index.redis.layout import (
    NODES,
    SHARD_TAGS,
    SHARDS,
    claim_key,
    epoch_key,
    heartbeat_key,
    holders,
    is_block,
    mark_of,
    redis_keys,
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
        assert key_slot(redis_keys([key])[0]) == key_slot(epoch_key(shard_of(key)))
        assert tag_of(redis_keys([key])[0]) == SHARD_TAGS[shard_of(key)]


def test_a_block_is_told_from_all_else_and_from_that_of_another_tenant() -> None:
    names = redis_keys(KEYS)
    assert len(set(names)) == len(KEYS)
    assert all(map(is_block, names))
    other = BlockKey(os.urandom(16) + KEYS[0][16:])
    assert redis_keys([other]) != names[:1]
    mark = mark_of("a")
    for name in (epoch_key(3), heartbeat_key(mark), claim_key(KEYS[0]), NODES, b"", names[0][:-1]):
        assert not is_block(name)


def test_a_value_names_nodes_and_tiers() -> None:
    a, b = mark_of("a"), mark_of("b")
    value = a + b"\x03" + b + b"\x02"
    read = [(mark, list(tiers)) for mark, tiers in holders(value)]
    assert read == [(a, [TierName.RAM, TierName.DISK]), (b, [TierName.DISK])]
    assert list(holders(value[:5])) == []
