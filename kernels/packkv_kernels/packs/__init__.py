"""PackKV as its paper publishes it (arXiv 2512.24449): quantise, repack, pack.

    integers = PackKVQuantizer(rel=0.05).quantize(keys)        one step and zero per token
    order = Repacker(Repacking.MEDIAN).order(k, v)             one permutation per block
    block = encode_packs(k[order], pack_tokens=16)             min, width and bits per pack
    published_bytes([k[order]], pack_tokens=16)                what the paper would count

The resident tile of `packkv_kernels.format` holds the same integers in another order.
"""

from packkv_kernels.packs.accounting import published_bytes
from packkv_kernels.packs.encoding import PACK_TOKENS, decode_packs, encode_packs
from packkv_kernels.packs.quantizer import PackKVQuantizer, TokenIntegers
from packkv_kernels.packs.repacker import Repacker, Repacking

__all__ = [
    "PACK_TOKENS",
    "PackKVQuantizer",
    "Repacker",
    "Repacking",
    "TokenIntegers",
    "decode_packs",
    "encode_packs",
    "published_bytes",
]
