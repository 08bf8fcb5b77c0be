"""The cache as an engine sees it: token ids in, verified payloads out, and never an exception.

    prefixes = PrefixCache(client, namespace, codec, shape)
    prefix = prefixes.load(token_ids)              # 0 … len - 1 tokens, whatever the store does
    ...                                            # compute the rest, compress its full blocks
    prefixes.publish(token_ids, blocks)            # in the background

Every payload has been checked against everything the namespace says before it is handed out.
"""

from packkv.prefix_cache.arriving import ArrivingPrefix
from packkv.prefix_cache.cache import PrefixCache
from packkv.prefix_cache.config import PrefixCacheConfig
from packkv.prefix_cache.counters import Counters
from packkv.prefix_cache.identity import adopt_profile, codec_identity
from packkv.prefix_cache.load import LoadedPrefix, LoadReport

__all__ = [
    "ArrivingPrefix",
    "Counters",
    "LoadReport",
    "LoadedPrefix",
    "PrefixCache",
    "PrefixCacheConfig",
    "adopt_profile",
    "codec_identity",
]
