"""Blocks to move: sound payloads that a store accepts, of bytes that mean nothing."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

import numpy as np

from packkv.hashing import chain_hashes
from packkv_kernels.config import BLOCK_TOKENS, RawConfig
from packkv_kernels.format.payload import KVDtype, PayloadHeader, write_payload

_HEAD_DIM: Final = 64
_ALIGNMENT: Final = 16
# Blocks below it have few sections: their table would be most of them.
_SMALL_BYTES: Final = 64 << 10


@dataclass(frozen=True)
class Blocks:
    """The blocks of one prefix. Nobody else has this prefix: its root hash is random."""

    root_hash: bytes
    names: list[bytes]
    payloads: list[bytearray]

    @property
    def total_bytes(self) -> int:
        return sum(map(len, self.payloads))

    @property
    def pairs(self) -> list[tuple[bytes, bytearray]]:
        """What a Put takes."""
        return list(zip(self.names, self.payloads, strict=True))


def random_blocks(count: int, block_bytes: int) -> Blocks:
    """`count` blocks with payloads of about `block_bytes` each, at least a few hundred."""
    root_hash = secrets.token_bytes(32)
    names = chain_hashes(root_hash, np.arange(count * BLOCK_TOKENS, dtype=np.int32))
    payloads = [_payload(root_hash, name, index, block_bytes) for index, name in enumerate(names)]
    return Blocks(root_hash, names, payloads)


def _payload(root_hash: bytes, name: bytes, index: int, block_bytes: int) -> bytearray:
    codec = RawConfig()
    layers, heads = (2, 2) if block_bytes < _SMALL_BYTES else (30, 4)
    header = PayloadHeader(
        codec=codec.codec_id,
        kv_dtype=KVDtype.FLOAT16,
        tokens=BLOCK_TOKENS,
        sinks=codec.block_sinks(BLOCK_TOKENS * index, BLOCK_TOKENS),
        layers=layers,
        first_head=0,
        heads=heads,
        head_dim=_HEAD_DIM,
        root_hash=root_hash,
        chain_hash=name,
        codec_digest=codec.digest,
        profile_digest=bytes(32),
        first_token=BLOCK_TOKENS * index,
    )
    left = max(0, block_bytes - header.head_length) // header.section_count
    length = max(_ALIGNMENT, left // _ALIGNMENT * _ALIGNMENT)
    noise = np.random.default_rng(index)
    return write_payload(header, [noise.bytes(length) for _ in range(header.section_count)])
