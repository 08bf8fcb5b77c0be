"""Which form is published: the rule, from rates that a test says were measured."""

from __future__ import annotations

import threading

import pytest

from packkv.client import Tier
from packkv.cold import Cold
from packkv.errors import ConfigError
from packkv.prefix_cache import PrefixCacheConfig
from packkv.prefix_cache.cold_coder import ColdCoder, OutOfTime
from packkv.prefix_cache.counters import Tally
from packkv.prefix_cache.forms import Forms
from packkv.prefix_cache.links import Links
from packkv_kernels.config import CacheShape, PackKVConfig
from packkv_kernels.entropy import ColdRates, to_cold
from packkv_kernels.errors import PayloadError
from packkv_kernels.format import Form, Payload, read_payload
from packkv_kernels.testing import encode_payloads, random_kv

RAM, DISK = [Tier.RAM], [Tier.RAM, Tier.DISK]
MB = 1_000_000
# a link on which any machine gains, and one on which none does
CRAWL, RACE = 1_000, 10**15


@pytest.fixture(scope="module")
def payload() -> bytes:
    keys, values = random_kv(CacheShape(2, 2, 64), 64, first_token=64)
    return bytes(encode_payloads(keys, values, PackKVConfig(), first_token=64)[0])


def forms_of(cold: Cold, **settings: object) -> Forms:
    return Forms(cold, Tally(60.0), **settings)  # type: ignore[arg-type]


def is_cold(forms: Forms, payload: bytes, *, hurried: bool = False) -> bool:
    sent = forms.published(payload, hurried=hurried)
    found = read_payload(sent)
    assert forms.resident(found, 60.0).data == payload
    if found.header.form is Form.RESIDENT:
        assert sent is payload
    return found.header.form is Form.COLD


def test_always_and_never_ask_no_link(payload: bytes) -> None:
    assert is_cold(forms_of("always"), payload)
    assert is_cold(forms_of("always"), payload, hurried=True)
    never = forms_of("never")
    never.fetched("grpc", RAM, CRAWL, 1.0)
    assert not is_cold(never, payload)


def test_auto_follows_the_link(payload: bytes) -> None:
    forms = forms_of("auto")
    forms.fetched("grpc", RAM, CRAWL, 1.0)
    assert is_cold(forms, payload)
    # the next fetch took another path
    forms.fetched("shared-memory", RAM, RACE, 1.0)
    assert not is_cold(forms, payload)
    forms.fetched("grpc", RAM, CRAWL, 1.0)
    assert is_cold(forms, payload)


def test_auto_measures_no_coding_where_it_could_not_pay(payload: bytes) -> None:
    forms = forms_of("auto")
    assert not is_cold(forms, payload)
    forms.fetched("shared-memory", RAM, RACE, 1.0)
    assert not is_cold(forms, payload)
    assert forms.coder.rates() is None


def test_a_publisher_that_falls_behind_does_not_encode(payload: bytes) -> None:
    forms = forms_of("auto")
    forms.fetched("grpc", RAM, CRAWL, 1.0)
    assert not is_cold(forms, payload, hurried=True)
    assert forms.coder.rates() is None


def test_a_slow_tier_weighs_as_much_as_it_brings(payload: bytes) -> None:
    forms = forms_of("auto")
    forms.fetched("bulk", RAM, RACE, 1.0)
    forms.fetched("bulk", DISK, CRAWL, 1.0)
    # nearly all came fast
    assert not is_cold(forms, payload)
    for _ in range(200):
        forms.fetched("bulk", DISK, CRAWL, 1.0)
    assert is_cold(forms, payload)


def test_the_cost_of_coding_is_measured_again_in_time(payload: bytes) -> None:
    now = [0.0]
    forms = forms_of("auto", recheck_s=10.0, clock=lambda: now[0])
    forms.fetched("grpc", RAM, CRAWL, 1.0)
    forms.published(payload, hurried=False)
    before = forms.coder.rates()
    assert before is not None
    forms.published(payload, hurried=False)
    after = forms.coder.rates()
    # encoded again, and not decoded
    assert after is not None
    assert after.decode_bytes_per_s == before.decode_bytes_per_s
    now[0] = 11.0
    forms.published(payload, hurried=False)
    later = forms.coder.rates()
    assert later is not None
    assert later.decode_bytes_per_s != before.decode_bytes_per_s


def test_the_gain_is_the_mean_of_its_links() -> None:
    forms = forms_of("auto")
    rates = ColdRates(0.25, 50.0 * MB, 100.0 * MB)
    assert forms.gain_s_per_byte(rates) == 0
    forms.fetched("bulk", RAM, 30 * MB, 1.0)
    one = 0.25 / (30 * MB) - 1 / (100 * MB)
    assert forms.gain_s_per_byte(rates) == pytest.approx(one)
    # what came before counts 0.8 of what it did
    forms.fetched("bulk", DISK, 24 * MB, 2.0)
    other = 0.25 / (12 * MB) - 1 / (100 * MB)
    assert forms.gain_s_per_byte(rates) == pytest.approx((one + other) / 2)


def test_what_is_decoded_on_the_way_costs_only_what_the_link_does_not_hide() -> None:
    rates = ColdRates(0.25, 50.0 * MB, 100.0 * MB)
    for bytes_per_s, pays in ((60 * MB, True), (90 * MB, True), (110 * MB, False)):
        forms = forms_of("auto")
        forms.fetched("bulk", RAM, bytes_per_s, 1.0, overlaps=True)
        assert (forms.gain_s_per_byte(rates) > 0) == pays
        forms.fetched("bulk", RAM, bytes_per_s, 1.0)
        assert forms.gain_s_per_byte(rates) < 0


def test_fetches_that_brought_nothing_say_nothing() -> None:
    links = Links()
    links.observe("bulk", RAM, 0, 1.0, False)
    links.observe("bulk", RAM, 10, 0.0, False)
    links.observe(None, RAM, 10, 1.0, False)
    assert links.measured() == []


def test_a_tier_that_brings_nothing_any_more_is_forgotten() -> None:
    links = Links()
    links.observe("bulk", DISK, 10 * MB, 1.0, False)
    for _ in range(5000):
        links.observe("bulk", RAM, 10 * MB, 0.1, False)
    (link,) = links.measured()
    assert link.bytes_per_s == pytest.approx(100 * MB)
    assert (link.share, link.overlaps) == (1.0, False)


def test_what_is_not_sound_is_published_as_it_is(payload: bytes) -> None:
    wild = bytearray(payload)
    wild[-1] ^= 1
    for data in (bytes(wild), b"", payload[:100]):
        assert forms_of("always").published(data, hurried=False) is data


def test_there_are_three_choices() -> None:
    with pytest.raises(ConfigError, match="sometimes"):
        PrefixCacheConfig(cold="sometimes")  # type: ignore[arg-type]


class SlowlyCompiled(ColdCoder):
    """One whose compiler waits for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.may_compile = threading.Event()

    def _compile(self, payload: Payload) -> None:
        assert self.may_compile.wait(60)
        super()._compile(payload)


def test_a_load_does_not_wait_for_the_compiler(payload: bytes) -> None:
    coder, cold = SlowlyCompiled(), read_payload(to_cold(read_payload(payload)))
    for left_s in (0.01, 0.0, -1.0):
        with pytest.raises(OutOfTime):
            coder.decode(cold, left_s)
    coder.may_compile.set()
    assert coder.decode(cold, 60.0).data == payload


def test_damage_is_reported_whoever_compiles(payload: bytes) -> None:
    cold = read_payload(to_cold(read_payload(payload)))
    wild = bytearray(cold.data)
    wild[cold.header.preamble_at + 8] ^= 1
    damaged = Payload(cold.header, memoryview(wild), cold.sections)
    coder = ColdCoder()
    for _ in range(2):
        with pytest.raises(PayloadError):
            coder.decode(damaged, 60.0)
    assert coder.decode(cold, 60.0).data == payload
