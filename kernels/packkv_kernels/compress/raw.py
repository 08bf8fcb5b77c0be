"""The lossless codec between tensors and sections."""

import torch

from packkv_kernels.config import BLOCK_TOKENS
from packkv_kernels.errors import InvalidInput
from packkv_kernels.format import KVDtype
from packkv_kernels.format.raw import compress_values

__all__ = ["encode_blocks", "kv_dtype"]

_DTYPES = {
    torch.float16: KVDtype.FLOAT16,
    torch.bfloat16: KVDtype.BFLOAT16,
    torch.float32: KVDtype.FLOAT32,
}


def kv_dtype(dtype: torch.dtype) -> KVDtype:
    """The header's number of a tensor's dtype.

    Raises:
        InvalidInput: no codec takes that dtype.
    """
    if dtype not in _DTYPES:
        raise InvalidInput(f"{dtype} is not float16, bfloat16 or float32")
    return _DTYPES[dtype]


def encode_blocks(keys: torch.Tensor, values: torch.Tensor) -> list[list[bytes]]:
    """Sections [block][head] of K and V [tokens, heads, head_dim] in the KV dtype."""
    blocks = []
    for k, v in zip(
        torch.split(keys, BLOCK_TOKENS), torch.split(values, BLOCK_TOKENS), strict=True
    ):
        both = torch.stack([k, v]).permute(2, 0, 1, 3).contiguous()
        blocks.append(
            [
                compress_values(head.view(torch.uint8).numpy().tobytes(), both.itemsize)
                for head in both
            ]
        )
    return blocks
