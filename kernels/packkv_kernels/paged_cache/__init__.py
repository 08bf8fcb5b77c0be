"""The paged cache of a worker: packed blocks of many sequences in one arena, shared by prefix."""

from packkv_kernels.paged_cache.cache import Adopted, Page, PagedCache
from packkv_kernels.paged_cache.residual import ExactTokens
from packkv_kernels.paged_cache.sequence import SequenceCache

__all__ = ["Adopted", "ExactTokens", "Page", "PagedCache", "SequenceCache"]
