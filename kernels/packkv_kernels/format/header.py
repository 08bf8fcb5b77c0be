"""PayloadHeader: the first 192 bytes of a payload, and what a reader may expect of them."""

import struct
from dataclasses import dataclass
from enum import IntEnum

from packkv_kernels.config import BLOCK_TOKENS, MAX_HEAD_DIM, CacheShape, CodecId
from packkv_kernels.errors import PayloadError

__all__ = [
    "ALIGNMENT",
    "CHECKSUM_AT",
    "HEADER_BYTES",
    "MAX_COMPUTE_MS",
    "MAX_PAYLOAD_BYTES",
    "TABLE_ROW_BYTES",
    "VERSION",
    "Expectation",
    "Form",
    "KVDtype",
    "PayloadHeader",
    "broken_limit",
    "pack_header",
    "unpack_header",
]

MAGIC = b"PackKV\r\n"
VERSION = 2
HEADER_BYTES = 192
ALIGNMENT = 16
MAX_PAYLOAD_BYTES = 2**32 - 1
MAX_COMPUTE_MS = 65_504.0

# magic, version, codec, kv_dtype, form, tokens, sinks, layers, first_head, heads, head_dim,
# compute_ms, preamble bytes, root hash, chain hash, codec digest, profile digest, payload length,
# first token, head checksum
_HEADER = struct.Struct("<8sHHBBHHHHHHeI32s32s32s32sQQ16s")
CHECKSUM_AT = HEADER_BYTES - 16
TABLE_ROW_BYTES = 24

# No preamble is longer than the first, and the second for each section.
_PREAMBLE_BYTES = 4096
_PREAMBLE_SECTION_BYTES = 512


class Form(IntEnum):
    """How the sections of a payload are written; the header's `form`."""

    RESIDENT = 0  # as attention reads them
    COLD = 1  # entropy-coded; the preamble has what all sections share


class KVDtype(IntEnum):
    """What the model computes K and V in; the header's `kv_dtype`."""

    FLOAT16 = 0
    BFLOAT16 = 1
    FLOAT32 = 2

    @property
    def itemsize(self) -> int:
        return 4 if self is KVDtype.FLOAT32 else 2


@dataclass(frozen=True)
class PayloadHeader:
    """What a payload says of itself. Lengths and checksums follow from it and the sections.

    `compute_ms` is what the block took its publisher to compute, in half precision; 0: not known.
    """

    codec: CodecId
    kv_dtype: KVDtype
    tokens: int
    sinks: int
    layers: int
    first_head: int
    heads: int
    head_dim: int
    root_hash: bytes
    chain_hash: bytes
    codec_digest: bytes
    profile_digest: bytes
    first_token: int
    form: Form = Form.RESIDENT
    preamble_bytes: int = 0
    compute_ms: float = 0.0

    @property
    def shape(self) -> CacheShape:
        return CacheShape(self.layers, self.heads, self.head_dim)

    @property
    def section_count(self) -> int:
        return self.layers * self.heads

    @property
    def preamble_at(self) -> int:
        """Where the section table, padding included, ends."""
        end = HEADER_BYTES + TABLE_ROW_BYTES * self.section_count
        return -(-end // ALIGNMENT) * ALIGNMENT

    @property
    def head_length(self) -> int:
        return self.preamble_at + self.preamble_bytes


@dataclass(frozen=True)
class Expectation:
    """What a reader asked for. A field that is None is not checked."""

    codec: CodecId | None = None
    kv_dtype: KVDtype | None = None
    tokens: int | None = None
    sinks: int | None = None
    shape: CacheShape | None = None
    first_head: int | None = None
    root_hash: bytes | None = None
    chain_hash: bytes | None = None
    codec_digest: bytes | None = None
    profile_digest: bytes | None = None
    first_token: int | None = None


def pack_header(header: PayloadHeader, payload_length: int) -> bytes:
    """The header's bytes, their checksum still zeros."""
    return _HEADER.pack(
        *(MAGIC, VERSION, header.codec, header.kv_dtype, header.form, header.tokens),
        *(header.sinks, header.layers, header.first_head, header.heads, header.head_dim),
        *(header.compute_ms, header.preamble_bytes),
        *(header.root_hash, header.chain_hash, header.codec_digest, header.profile_digest),
        *(payload_length, header.first_token, bytes(16)),
    )


def broken_limit(header: PayloadHeader) -> str | None:
    """The first limit that a header's fields break, in words."""
    limits = {
        "tokens": (1, BLOCK_TOKENS),
        "sinks": (0, header.tokens),
        "layers": (1, 65_535),
        "first_head": (0, 65_535),
        "heads": (1, 65_535),
        "head_dim": (4, MAX_HEAD_DIM),
        "first_token": (0, 2**64 - 1),
        "compute_ms": (0, MAX_COMPUTE_MS),
    }
    for name, (low, high) in limits.items():
        value = getattr(header, name)
        if not low <= value <= high:
            return f"{name} {value} is outside {low} … {high}"
    if header.head_dim % 4:
        return f"head_dim {header.head_dim} is not a multiple of 4"
    most = _most_preamble_bytes(header)
    if header.preamble_bytes % ALIGNMENT or not 0 <= header.preamble_bytes <= most:
        return f"preamble of {header.preamble_bytes} bytes, not of 0 … {most} in whole 16s"
    if header.codec is CodecId.RAW and header.sinks:
        return f"sinks {header.sinks} in a raw payload, which has none"
    if header.codec is CodecId.RAW and header.form is Form.COLD:
        return "a raw payload in cold form, which it has not"
    for name in ("root_hash", "chain_hash", "codec_digest", "profile_digest"):
        if len(getattr(header, name)) != 32:
            return f"{name} has {len(getattr(header, name))} bytes, not 32"
    return None


def _most_preamble_bytes(header: PayloadHeader) -> int:
    if header.form is Form.RESIDENT:
        return 0
    return _PREAMBLE_BYTES + _PREAMBLE_SECTION_BYTES * header.section_count


def unpack_header(view: memoryview) -> tuple[PayloadHeader, int]:
    """Header and payload_length of untrusted bytes; all limits hold, no checksum is checked.

    Raises:
        PayloadError: reason "truncated", "magic", "version" or "layout".
    """
    if len(view) < HEADER_BYTES:
        raise PayloadError("truncated", f"{len(view)} bytes, a header has {HEADER_BYTES}")
    values = _HEADER.unpack_from(view)
    magic, version, codec, kv_dtype, form, *extents, compute_ms, preamble_bytes = values[:13]
    *hashes, length, first_token, _ = values[13:]
    if magic != MAGIC:
        raise PayloadError("magic", f"magic {magic!r} is not {MAGIC!r}")
    if version != VERSION:
        raise PayloadError("version", f"version {version} is not {VERSION}")
    try:
        kinds = CodecId(codec), KVDtype(kv_dtype), Form(form)
    except ValueError as error:
        what = f"codec {codec}, kv_dtype {kv_dtype}, form {form}"
        raise PayloadError("layout", f"{what}: {error}") from None
    rest = *extents, *hashes, first_token, kinds[2], preamble_bytes, compute_ms
    header = PayloadHeader(kinds[0], kinds[1], *rest)
    wrong = broken_limit(header)
    if wrong:
        raise PayloadError("layout", wrong)
    return header, length
