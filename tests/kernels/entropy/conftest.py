"""A payload in both of its forms."""

from __future__ import annotations

import pytest

from packkv_kernels.config import CacheShape, CodecConfig
from packkv_kernels.entropy import to_cold
from packkv_kernels.format import Form, Payload, read_payload
from packkv_kernels.testing import encode_payloads, random_kv, random_profile


@pytest.fixture(scope="module", params=["hybrid", "packkv"])
def resident(request: pytest.FixtureRequest) -> Payload:
    config, shape = CodecConfig.parse(request.param), CacheShape(4, 4, 64)
    keys, values = random_kv(shape, 64)
    return read_payload(encode_payloads(keys, values, config, random_profile(shape))[0])


@pytest.fixture(scope="module")
def cold(resident: Payload) -> Payload:
    payload = read_payload(to_cold(resident))
    assert payload.header.form is Form.COLD
    return payload
