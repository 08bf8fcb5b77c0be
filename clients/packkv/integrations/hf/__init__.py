"""The transformers connector: stock models, no patch.

from packkv.integrations.hf import PackKV
"""

from packkv.integrations.hf.cache import JoinedCache, PackedKVCache
from packkv.integrations.hf.connector import PackKV, PackKVConfig

__all__ = ["JoinedCache", "PackKV", "PackKVConfig", "PackedKVCache"]
