"""The transformers connector: stock models, no patch.

from packkv.integrations.hf import PackKV
"""

from packkv.integrations.hf.cache import PackedKVCache
from packkv.integrations.hf.connector import PackKV, PackKVConfig
from packkv.integrations.hf.joined import JoinedCache

__all__ = ["JoinedCache", "PackKV", "PackKVConfig", "PackedKVCache"]
