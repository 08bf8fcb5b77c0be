"""What lies in Redis, byte by byte.

| key                         | value                                                       |
|-----------------------------|-------------------------------------------------------------|
| `{TT}` + block name, 28 B   | 9 bytes a node: its mark (8), the tiers it has it in (1)     |
| `{TT}:epoch`                | a random word; another one, or none, means: blocks were lost |
| `{TT}:node:` + mark         | heartbeat: JSON of identity and address; expires             |
| `{TT}:nodes`                | set of the marks of all nodes that may have blocks here      |
| `{TT}:first:` + block key   | which of several values offered under a name was the first   |
| `{TT}:sweeper`              | the mark of the node that sweeps at the moment; expires      |

`TT` is the tag of one of 64 shards. On Redis Cluster a tag decides which master has the key, and
each command may touch one tag only: 64 tags spread the blocks evenly over up to 64 masters and yet
let thousands of keys be asked for with one command a shard. One server needs no tags but has the
same keys.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from packkv_store.block import BlockKey, TierName

SHARDS = 64
MARK_BYTES = 8
HOLDER_BYTES = MARK_BYTES + 1
# A block that is everywhere needs no more sources than this to be found.
MAX_HOLDERS = 16
TIER_BIT = {TierName.RAM: 1, TierName.DISK: 2}
TIERS = [tuple(tier for tier, bit in TIER_BIT.items() if bits & bit) for bits in range(4)]
# Sets what one node (ARGV[1]) has of blocks of one shard: a byte of tiers for each (ARGV[2]), 0 for
# none. Writes only where that changes something. A value of ARGV[3] nodes takes no more, and one
# that is cut short is made anew.
SET_TIERS = b"""
local mark, tiers, most = ARGV[1], ARGV[2], tonumber(ARGV[3])
for i, key in ipairs(KEYS) do
  local was = redis.call('GET', key) or ''
  local tier = tiers:sub(i, i)
  local now = #was % 9 == 0 and was or ''
  local at = 1
  while at <= #now and now:sub(at, at + 7) ~= mark do at = at + 9 end
  if at <= #now then
    if tier == '\\0' then now = now:sub(1, at - 1) .. now:sub(at + 9)
    else now = now:sub(1, at + 7) .. tier .. now:sub(at + 9) end
  elseif tier ~= '\\0' and #now < 9 * most then now = now .. mark .. tier end
  if now == '' then if was ~= '' then redis.call('DEL', key) end
  elseif now ~= was then redis.call('SET', key, now) end
end
"""
# The value in force, after setting one (ARGV[1]) if there was none, or a certain one (ARGV[2]).
CLAIM = b"""
local now = redis.call('GET', KEYS[1])
if now and (ARGV[2] == '' or now ~= ARGV[2]) then return now end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
"""
# The epoch in force, after setting one (ARGV[1]) if there was none.
GET_EPOCH = b"""
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return redis.call('GET', KEYS[1])
"""


def _shard_tags() -> list[bytes]:
    """One tag of two characters for each 64th of the slots, so that masters share them evenly."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tags: dict[int, bytes] = {}
    for pair in product(letters, repeat=2):
        tag = "".join(pair).encode()
        tags.setdefault(key_slot(tag) * SHARDS // REDIS_CLUSTER_HASH_SLOTS, tag)
    return [b"{" + tags[shard] + b"}" for shard in range(SHARDS)]


SHARD_TAGS = _shard_tags()
TAG_OF_BYTE = [SHARD_TAGS[byte % SHARDS] for byte in range(256)]
NODES = SHARD_TAGS[0] + b":nodes"
SWEEPER = SHARD_TAGS[0] + b":sweeper"
# Of a block key, the first bytes of the tenant's tag and the last of the chain hash: two of 10⁹
# blocks of a tenant share a name with probability 1e-21, and then one costs a question in vain.
# Shorter names cost Redis and the network less, in memory and in time.
TENANT_BYTES = 8
NAME_BYTES = 16
BLOCK_NAME_BYTES = len(SHARD_TAGS[0]) + TENANT_BYTES + NAME_BYTES


def shard_of(key: BlockKey) -> int:
    """Chain hashes are SHA-256, so their last byte is as even as any."""
    return key[-1] % SHARDS


def redis_keys(keys: Iterable[BlockKey]) -> list[bytes]:
    """The keys of blocks' locations."""
    # thousands for a Match: a look into a table, and no call, for each
    return [TAG_OF_BYTE[key[-1]] + key[:TENANT_BYTES] + key[-NAME_BYTES:] for key in keys]


def claim_key(key: BlockKey) -> bytes:
    """The key of what was offered first under a name."""
    return SHARD_TAGS[shard_of(key)] + b":first:" + key


def is_block(name: bytes) -> bool:
    """Whether a key of Redis is about a block."""
    return len(name) == BLOCK_NAME_BYTES and name[:1] == b"{"


def tag_of(name: bytes) -> bytes:
    """What decides where a key lies: names with one tag may go into one command."""
    return name[:4]


def epoch_key(shard: int) -> bytes:
    """The key whose value changes when a shard has lost what was in it."""
    return SHARD_TAGS[shard] + b":epoch"


def mark_of(node: str) -> bytes:
    """Eight bytes that stand for a node; two of 1,000 nodes share one with probability 3e-14."""
    return hashlib.sha256(node.encode()).digest()[:MARK_BYTES]


def heartbeat_key(mark: bytes) -> bytes:
    """The key that is there for as long as the node lives."""
    return SHARD_TAGS[mark[0] % SHARDS] + b":node:" + mark


def holders(value: bytes) -> Iterator[tuple[bytes, Sequence[TierName]]]:
    """Marks and tiers in a value. One that is cut short or has unknown bits is read as far as it
    makes sense: the index is a hint."""
    for at in range(0, len(value) - MARK_BYTES, HOLDER_BYTES):
        yield value[at : at + MARK_BYTES], TIERS[value[at + MARK_BYTES] & 3]
