"""ColdCoder: payloads to their cold form and back, and what that has taken and saved here."""

from __future__ import annotations

import threading
import time

from packkv.errors import PackKVError
from packkv.prefix_cache.estimate import Rate
from packkv_kernels.entropy import ColdHead, ColdRates, DecodeSections, decode_cold, to_cold
from packkv_kernels.errors import PayloadError
from packkv_kernels.format import Form, Payload, read_payload


class OutOfTime(PackKVError):
    """There is no time left to decode, or to wait until what decodes is compiled."""


class ColdCoder:
    """Codes payloads of one codec and learns what that costs on this machine. Thread-safe.

    What encodes and decodes is compiled on first use, once after an installation: up to a minute.
    Encoding has that time. A decoding does not wait for it beyond its own.

    Args:
        decode: who decodes sections.
    """

    def __init__(self, decode: DecodeSections = ColdHead.decode) -> None:
        self.decode_sections = decode
        self._encoding = Rate()
        self._decoding = Rate()
        # bytes of cold forms per byte of what they were made of
        self._kept = Rate()
        # guards the two below
        self._lock = threading.Lock()
        self._compiling: threading.Thread | None = None
        self._is_compiled = False

    def encode(self, payload: Payload) -> Payload:
        """The cold form, made by one thread so that it takes no more than a core from the engine;
        the payload itself where it is no shorter.

        Raises:
            PayloadError: reason "section": the payload is not sound.
        """
        started = time.perf_counter()
        cold = to_cold(payload, threads=1)
        size = len(payload.data)
        self._encoding.observe(size, time.perf_counter() - started)
        self._kept.observe(len(cold), size)
        return read_payload(cold)

    def decode(self, payload: Payload, left_s: float) -> Payload:
        """The resident form; itself if it is resident.

        Args:
            payload: verified, in either form.
            left_s: without time nothing is begun, and the compiler is waited for no longer.

        Raises:
            PayloadError: no payload comes back.
            OutOfTime: it was not begun.
        """
        if payload.header.form is Form.RESIDENT:
            return payload
        if left_s <= 0:
            raise OutOfTime("no time left to decode a cold payload")
        if not self._is_compiled:
            self._wait(payload, left_s)
        started = time.perf_counter()
        resident = decode_cold(payload, self.decode_sections)
        self._decoding.observe(len(resident.data), time.perf_counter() - started)
        return resident

    def rates(self) -> ColdRates | None:
        """What has been measured; None before a payload has gone both ways."""
        kept, encoding, decoding = (
            rate.per_s() for rate in (self._kept, self._encoding, self._decoding)
        )
        if kept is None or encoding is None or decoding is None:
            return None
        return ColdRates(max(0.0, 1 - kept), encoding, decoding)

    def _wait(self, payload: Payload, left_s: float) -> None:
        with self._lock:
            if self._compiling is None:
                self._compiling = threading.Thread(
                    target=self._compile, args=(payload,), name="packkv-cold", daemon=True
                )
                self._compiling.start()
            compiling = self._compiling
        compiling.join(left_s)
        if compiling.is_alive():
            raise OutOfTime("what decodes cold payloads is still being compiled")

    def _compile(self, payload: Payload) -> None:
        try:
            decode_cold(payload, self.decode_sections)
            self._is_compiled = True
        except PayloadError:
            # it fails again where somebody waits for it, and another payload compiles the rest
            with self._lock:
                self._compiling = None
