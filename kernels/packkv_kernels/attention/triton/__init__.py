"""Attention over packed pages on a GPU: fused for few queries, unpack-once for many.

fragments  planes to tensor-core operands, in registers;  stepped  the query times channel steps
tiles      the decode kernel over packed tiles;  minima  what is taken out of its loop
exact      the tokens it leaves aside;  residual  the newest;  window  what a query does not see
combine    the merge of all partial states
launch     the fixed sequence of launches, an operator of torch;  decode  its buffers
resident   pages on the device;  rows  ragged batches;  batch  steps of one, in the same buffers
"""

from packkv_kernels.attention.triton.batch import BatchDecode
from packkv_kernels.attention.triton.decode import PackedDecode, Residual
from packkv_kernels.attention.triton.resident import DeviceLayer, resident_layer
from packkv_kernels.attention.triton.rows import attend_rows

__all__ = [
    "BatchDecode",
    "DeviceLayer",
    "PackedDecode",
    "Residual",
    "attend_rows",
    "resident_layer",
]
