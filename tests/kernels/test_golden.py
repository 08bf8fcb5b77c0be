"""Golden payloads: the format as files. They change only together with the format's version.

`golden/payloads.json` says what is in each file; the store's reader is held to the same files.
After a deliberate change of the format: `python tests/kernels/test_golden.py` writes them anew.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from packkv_kernels.compress import decode_block
from packkv_kernels.config import CacheShape, CodecConfig
from packkv_kernels.entropy import from_cold, to_cold
from packkv_kernels.format import Form, describe_sections, read_payload, tile, write_payload
from packkv_kernels.format.layout import plane_mode
from packkv_kernels.profile import Profile
from packkv_kernels.testing import encode_payloads

GOLDEN = Path(__file__).parent / "golden"
SHAPE = CacheShape(layers=2, heads=2, head_dim=16)
# name of the file: codec, tokens, position of the first
CASES = {
    "hybrid": ("hybrid:delta=1.0,v_levels=8", 64, 0),
    "hybrid-partial": ("hybrid:delta=1.0,v_levels=16", 5, 128),
    "hybrid-narrow": ("hybrid:delta=2.0,v_levels=2", 64, 64),
    "packkv": ("packkv:rel_k=0.02,rel_v=0.2", 64, 0),
    "packkv-partial": ("packkv:rel_k=0.1,rel_v=0.1", 33, 64),
    "raw": ("raw", 64, 0),
}
# name of the file: the payload whose cold form it is
COLD = {"hybrid-partial-cold": "hybrid-partial", "packkv-cold": "packkv"}


def profile() -> Profile:
    channels = np.arange(SHAPE.head_dim)
    dims = (SHAPE.layers, SHAPE.heads, SHAPE.head_dim)
    q_rms = np.broadcast_to((2.0 ** (channels % 8 - 2)).astype(np.float32), dims)
    return Profile(q_rms, np.broadcast_to((5 * channels + 3) % SHAPE.head_dim, dims))


def noise(tokens: int, salt: int) -> torch.Tensor:
    """float64 [layers, tokens, heads, head_dim] in -1 … 1, the same on every machine."""
    dims = (SHAPE.layers, tokens, SHAPE.heads, SHAPE.head_dim)
    count = int(np.prod(dims))
    data = hashlib.shake_256(salt.to_bytes(4, "little")).digest(2 * count)
    return torch.from_numpy(np.frombuffer(data, "<u2").reshape(dims) / 32_768 - 1)


def golden_kv(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float16 K and V that need every plane, both kinds of minima, and a raw tile."""
    order = torch.from_numpy(profile().k_order[0, 0].astype(np.int64))
    # steps that each stored unit of four channels spans, by head
    spans = torch.tensor([[120.0, 30, 7, 1.4], [30.0, 3.4, 0.6, 0.2]]).double()
    by_channel = torch.empty(2, SHAPE.head_dim, dtype=torch.float64)
    by_channel[:, order] = spans.repeat_interleave(4, dim=1)
    step = torch.from_numpy(1 / profile().q_rms[0, 0].astype(np.float64))
    keys = noise(tokens, 1) * by_channel * step
    keys[1, :, 0] *= 20
    keys[1, :, 1] += 500 * step
    values = noise(tokens, 2) * torch.tensor([0.3, 2.0])[:, None]
    values[0, -1] = 0
    values[0, -1, 1] = 1000.0
    return keys.half(), values.half()


def golden_payload(name: str) -> bytes:
    text, tokens, first_token = CASES[name]
    keys, values = golden_kv(tokens)
    chain_hash = hashlib.sha256(name.encode()).digest()
    payloads = encode_payloads(
        keys,
        values,
        CodecConfig.parse(text),
        profile(),
        first_token=first_token,
        root_hash=hashlib.sha256(b"golden").digest(),
        chain_hash=chain_hash,
    )
    return bytes(payloads[0])


def facts(data: bytes) -> dict[str, Any]:
    """What any reader must find in a payload."""
    payload = read_payload(data)
    header = {
        key: value.hex() if isinstance(value, bytes) else int(value)
        for key, value in asdict(payload.header).items()
    }
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "payload_length": len(data),
        "header": header,
        "sections": payload.sections.tolist(),
    }


def decoded_digest(decoded: tuple[torch.Tensor, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in decoded)).hexdigest()


def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / "payloads.json").read_text())
    return found


@pytest.mark.parametrize("name", [*CASES, *COLD])
def test_golden_files_are_what_their_manifest_says(name: str) -> None:
    found = facts((GOLDEN / f"{name}.payload").read_bytes())
    assert found.items() <= recorded()[name].items()


@pytest.mark.parametrize("name", [name for name in CASES if name != "raw"])
def test_the_encoder_still_writes_the_golden_bytes(name: str) -> None:
    # zstandard may compress differently from release to release, so raw is only read
    assert golden_payload(name) == (GOLDEN / f"{name}.payload").read_bytes()


@pytest.mark.parametrize("name", COLD)
def test_golden_cold_bytes_are_still_written_and_read(name: str) -> None:
    cold, resident = ((GOLDEN / f"{file}.payload").read_bytes() for file in (name, COLD[name]))
    assert to_cold(read_payload(resident)) == cold
    assert read_payload(cold).header.form is Form.COLD
    assert from_cold(read_payload(cold)).data == resident


def test_either_form_says_what_the_block_took_to_compute() -> None:
    golden = read_payload((GOLDEN / "packkv-partial.payload").read_bytes())
    sections = [bytes(golden.section(*divmod(at, SHAPE.heads))) for at in range(4)]
    resident = read_payload(write_payload(replace(golden.header, compute_ms=12.5), sections))
    cold = read_payload(to_cold(resident))
    assert cold.header.compute_ms == resident.header.compute_ms == 12.5
    assert from_cold(cold).data == resident.data


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", CASES)
def test_golden_bytes_still_decode_to_the_golden_values(name: str, backend: str) -> None:
    payload = read_payload((GOLDEN / f"{name}.payload").read_bytes())
    config = CodecConfig.parse(CASES[name][0])
    decoded = decode_block(payload, config, profile(), backend)
    assert decoded_digest(decoded) == recorded()[name]["decoded_sha256"]
    if name == "raw":
        keys, values = golden_kv(CASES[name][1])
        assert torch.equal(decoded[0], keys.float())
        assert torch.equal(decoded[1], values.float())


def test_together_they_have_every_part_a_section_can_have() -> None:
    flags = [
        int(row[tile.FLAGS])
        for name in CASES
        if name != "raw"
        for row in describe_sections(read_payload((GOLDEN / f"{name}.payload").read_bytes()))
    ]
    for plane in range(tile.PLANE_A, tile.PLANE_H2 + 1):
        assert any(plane_mode(word, tile.K_SIDE, plane) == tile.SPARSE for word in flags)
    for kind in (tile.INT8_MINIMA, tile.INT16_MINIMA):
        assert any((word >> tile.MINIMA_SHIFT) & 3 == kind for word in flags)
    for kind in (tile.FLOAT_SCALES, tile.CHANNEL_STEPS):
        assert any((word >> tile.SCALES_SHIFT) & 3 == kind for word in flags)
    v_modes = {
        tuple(plane_mode(word, tile.V_SIDE, plane) for plane in range(tile.PLANE_A, tile.PLANE_H1))
        for word in flags
    }
    for planes_a_c in ((tile.ABSENT, tile.DENSE), (tile.DENSE, tile.DENSE)):
        assert (*planes_a_c, tile.ABSENT) in v_modes
    assert {word >> tile.RAW_SHIFT & 3 for word in flags} >= {0, 1, 2}


def write() -> None:
    manifest = {}
    for name in CASES:
        data = golden_payload(name)
        (GOLDEN / f"{name}.payload").write_bytes(data)
        decoded = decode_block(read_payload(data), CodecConfig.parse(CASES[name][0]), profile())
        manifest[name] = facts(data) | {"decoded_sha256": decoded_digest(decoded)}
    for name, resident in COLD.items():
        data = bytes(to_cold(read_payload(golden_payload(resident))))
        (GOLDEN / f"{name}.payload").write_bytes(data)
        manifest[name] = facts(data)
    (GOLDEN / "payloads.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    write()
