"""Forms: in which form payloads are published, and back to resident when they have come."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from packkv.client import Tier
from packkv.client.paths import Buffer
from packkv.cold import Cold
from packkv.prefix_cache.cold_coder import ColdCoder, OutOfTime
from packkv.prefix_cache.counters import Tally
from packkv.prefix_cache.links import Links
from packkv_kernels.entropy import ColdHead, ColdRates, DecodeSections, cold_gain_s_per_byte
from packkv_kernels.errors import PayloadError
from packkv_kernels.format import Form, Payload, read_payload

__all__ = ["Forms", "OutOfTime"]

# What coding is believed to do at best, before it is measured: what it saves, and what a core
# decodes in a second. Only links on which even that would pay are worth measuring it for.
_HOPED_SAVING: Final = 0.5
_HOPED_CORE_BYTES_PER_S: Final = 128 << 20


class Forms:
    """Chooses the form of what is published; decodes what is loaded. Thread-safe.

    The rule of "auto". A reader of a cold block waits `(1 − saving) / B + 1 / D` seconds for each
    byte of the payload instead of `1 / B`, with B bytes per second of its link and D of decoding;
    where decoding goes on while other bytes come, for the larger of the two. Encoding happens in
    the background, where nobody waits for it. So a block is published cold if the mean of

        gain = saving / B − 1 / D                         decoded when all has come
        gain = 1 / B − max((1 − saving) / B, 1 / D)       decoded on the way

    over the links by which this process lately loaded, weighted by the bytes that each brought, is
    above 0. A link is a path (shared memory, bulk, gRPC) from a tier (RAM, disk). Other readers are
    taken to be like this one.

    Everything is measured here, and nothing is believed for good. Until a load has measured a link
    blocks go resident. Then, if the link is slow enough that coding at its best would pay, a block
    is coded and decoded to measure that, and another one each time so much time has passed.
    A publisher that falls behind does not encode: a block that is sent as it is beats one dropped.

    Args:
        cold: "auto", "always" or "never". What comes cold is decoded in any case.
        tally: counts what came cold.
        decode: who decodes sections.
        recheck_s: how long the cost of coding is believed.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        cold: Cold,
        tally: Tally,
        *,
        decode: DecodeSections = ColdHead.decode,
        recheck_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cold = cold
        self._tally = tally
        self._recheck_s = recheck_s
        self._clock = clock
        self.coder = ColdCoder(decode)
        self.links = Links()
        self._lock = threading.Lock()
        self._checked_at: float | None = None
        at_best = _HOPED_CORE_BYTES_PER_S * (os.cpu_count() or 1)
        self._hoped = ColdRates(_HOPED_SAVING, math.inf, at_best)

    def resident(self, payload: Payload, left_s: float) -> Payload:
        """A verified payload as attention reads it; decoded, if it came cold.

        Raises:
            PayloadError: no payload comes back.
            OutOfTime: it would take longer than `left_s`.
        """
        if payload.header.form is Form.RESIDENT:
            return payload
        resident = self.coder.decode(payload, left_s)
        self._tally.add(loaded_cold=1)
        return resident

    def fetched(
        self,
        path: str | None,
        tiers: Sequence[Tier],
        received: int,
        seconds: float,
        *,
        overlaps: bool = False,
    ) -> None:
        """A fetch has brought `received` bytes in `seconds`, without what was done with them then.

        Args:
            path: that it took, as `Client.path`.
            tiers: of its blocks, as `Match.tiers`.
            received: bytes that came, of whatever form.
            seconds: that the link took, not the decoding.
            overlaps: whether bytes were decoded while others came.
        """
        self.links.observe(path, tiers, received, seconds, overlaps)

    def published(self, payload: Buffer, *, hurried: bool) -> Buffer:
        """What to publish for a payload: itself or its cold form.

        Args:
            payload: resident, not verified; one that is not sound stays as it is.
            hurried: the publisher falls behind.
        """
        if self._cold == "never" or (self._cold == "auto" and (hurried or not self._may_pay())):
            return payload
        try:
            resident = read_payload(payload)
            cold = self.coder.encode(resident)
            if self._cold == "auto" and not self._pays(cold):
                return payload
        except PayloadError:
            # the store, and whoever loads it, will say what is wrong with it
            return payload
        return payload if cold.header.form is Form.RESIDENT else cold.data

    def gain_s_per_byte(self, rates: ColdRates) -> float:
        """Seconds that a reader gains for each payload byte, by the rule above; 0 when no link has
        been measured."""
        return sum(
            link.share * cold_gain_s_per_byte(rates, link.bytes_per_s, overlaps=link.overlaps)
            for link in self.links.measured()
        )

    def _may_pay(self) -> bool:
        """Whether coding is worth while, or worth measuring."""
        rates = self.coder.rates()
        if rates is not None and self.gain_s_per_byte(rates) > 0:
            return True
        return self.gain_s_per_byte(self._hoped) > 0 and self._is_due()

    def _pays(self, cold: Payload) -> bool:
        """Whether coding is worth while, by what has just been measured."""
        if self._is_due():
            self.coder.decode(cold, float(threading.TIMEOUT_MAX))
            with self._lock:
                self._checked_at = self._clock()
        rates = self.coder.rates()
        return rates is not None and self.gain_s_per_byte(rates) > 0

    def _is_due(self) -> bool:
        with self._lock:
            checked_at = self._checked_at
        return checked_at is None or self._clock() - checked_at >= self._recheck_s
