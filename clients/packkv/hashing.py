"""Chain hashes: the name of a block is the SHA-256 of its parent's name and its token ids.

Equal chain hash means equal whole prefix, from the namespace (the root hash) on. Nothing here
depends on a process, a seed or an engine, so every worker of a namespace finds the same names.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK_SIZE = 64
HASH_BYTES = 32

TokenIds = Sequence[int] | npt.NDArray[np.integer[Any]]


def chain_hashes(
    root_hash: bytes, token_ids: TokenIds, block_size: int = BLOCK_SIZE
) -> list[bytes]:
    """The chain hash of every full block of `token_ids`, first block first.

    `hash[i] = SHA-256(hash[i-1] ‖ token ids of block i as little-endian int32)`, with `root_hash`
    before the first. Trailing tokens that do not fill a block have no hash.

    Raises:
        ValueError: a token id is no integer or beyond int32 (wrapping it would name another
            prefix), the ids are not one row, or the root hash is not 32 bytes.
    """
    if len(root_hash) != HASH_BYTES:
        raise ValueError(f"a root hash has {HASH_BYTES} bytes, not {len(root_hash)}")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, not {block_size}")
    tokens = memoryview(as_int32(token_ids).tobytes())
    step = 4 * block_size
    hashes: list[bytes] = []
    parent = root_hash
    for start in range(0, len(tokens) - step + 1, step):
        block = sha256(parent)
        block.update(tokens[start : start + step])
        parent = block.digest()
        hashes.append(parent)
    return hashes


def as_int32(token_ids: TokenIds) -> npt.NDArray[np.int32]:
    """Token ids as one contiguous row of little-endian int32, or ValueError if one does not fit."""
    tokens = np.asarray(token_ids)
    if tokens.ndim != 1:
        raise ValueError(f"token ids must be one row, not shape {tokens.shape}")
    if tokens.size == 0:
        return np.empty(0, dtype="<i4")
    if tokens.dtype.kind not in "iu":
        raise ValueError(f"token ids must be integers, not {tokens.dtype}")
    limits = np.iinfo(np.int32)
    low, high = int(tokens.min()), int(tokens.max())
    if low < limits.min or high > limits.max:
        raise ValueError(f"token id {high if high > limits.max else low} does not fit in 32 bits")
    return np.ascontiguousarray(tokens, dtype="<i4")
