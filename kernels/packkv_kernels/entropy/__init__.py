"""Entropy coding: the cold form of payloads, and KVComp as published. No torch in here.

`to_cold` and `from_cold` turn a payload into fewer bytes and back, and `cold_gain_s_per_byte` says
when that pays; `KVCompConfig` and `KVCompSide` are the codec of the paper, for comparison.
"""

from packkv_kernels.entropy.codebook import Codebook
from packkv_kernels.entropy.cold import decode_cold, from_cold, to_cold
from packkv_kernels.entropy.cold_head import ColdHead
from packkv_kernels.entropy.decoding import DecodeSections, section_decoder
from packkv_kernels.entropy.kvcomp import KVCompConfig, KVCompSide
from packkv_kernels.entropy.worth import ColdRates, cold_gain_s_per_byte

__all__ = [
    "Codebook",
    "ColdHead",
    "ColdRates",
    "DecodeSections",
    "KVCompConfig",
    "KVCompSide",
    "cold_gain_s_per_byte",
    "decode_cold",
    "from_cold",
    "section_decoder",
    "to_cold",
]
