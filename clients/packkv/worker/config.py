"""Every setting of a worker, made once at its start and passed in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from packkv.client import ClientConfig
from packkv.client.config import is_loopback
from packkv.errors import ConfigError
from packkv_kernels.config import CodecConfig
from packkv_kernels.errors import CodecError

PLAIN = "none"
DTYPES = ("auto", "float32", "bfloat16", "float16")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Settings of one worker. Seconds, bytes and tokens.

    Args:
        model: transformers folder or GGUF file; None: the demo's model.
        served_name: what requests call the model; None: the name of its folder.
        device: "cpu" or "cuda:N".
        dtype: what the model computes in; "auto": float32 on a CPU, its own on a GPU.
        codec: as in `PackKVConfig`, or "none": plain transformers without packing and sharing.
        store: HOST:PORT; None shares nothing.
        client: how the store is reached; its credential decides about the tenant.
        cache_bytes: memory for packed pages.
        deadline_s: the longest time that a fetch from the store may take.
        listen: HOST:PORT of the API; port 0 takes a free one.
        max_context: longest prompt and answer together; None: what the model knows.
        max_running: generations that move on together; 1 is one at a time.
        max_waiting: requests that wait for their turn; more are refused.
        max_body_bytes: of a request.
        request_s: from a request's arrival to its last token.
        grace_s: at the end, for running generations and for what is being published.
        api_keys_file: one key a line; who asks must show one.
        tls_cert, tls_key: PEM files of the API.
        insecure: listen beyond loopback without keys and TLS.
    """

    model: Path | None = None
    served_name: str | None = None
    device: str = "cpu"
    dtype: str = "auto"
    codec: str = "hybrid"
    store: str | None = None
    client: ClientConfig = field(default_factory=ClientConfig)
    cache_bytes: int = 1 << 30
    deadline_s: float = 2.0
    listen: str = "127.0.0.1:8000"
    max_context: int | None = None
    max_running: int = 8
    max_waiting: int = 64
    max_body_bytes: int = 4 << 20
    request_s: float = 600.0
    grace_s: float = 30.0
    api_keys_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        least = {"cache_bytes": 1 << 20, "max_running": 1, "max_waiting": 0, "max_body_bytes": 1024}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; the least is {low}")
        if self.max_context is not None and self.max_context < 2:
            raise ConfigError(f"max_context is {self.max_context}; the least is 2")
        for name in ("deadline_s", "request_s", "grace_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if _DEVICE.fullmatch(self.device) is None:
            raise ConfigError(f"device is {self.device!r}; write cpu, cuda or cuda:N")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}; write one of {', '.join(DTYPES)}")
        if not self.is_plain:
            try:
                CodecConfig.parse(self.codec)
            except CodecError as error:
                raise ConfigError(str(error)) from error
        if self.model is not None and not self.model.exists():
            raise ConfigError(f"no model at {self.model}: neither a folder nor a GGUF file")
        if self.store is not None:
            self.client.check_target(self.store)
        self._check_exposure()

    @property
    def is_plain(self) -> bool:
        """Whether the model runs without PackKV."""
        return self.codec == PLAIN

    @property
    def scheme(self) -> str:
        return "http" if self.tls_cert is None else "https"

    def api_keys(self) -> frozenset[str]:
        """The keys of the file, without empty lines and comments; empty without a file.

        Raises:
            ConfigError: the file cannot be read, or has no key.
        """
        if self.api_keys_file is None:
            return frozenset()
        try:
            lines = self.api_keys_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as reason:
            raise ConfigError(f"cannot read {self.api_keys_file}: {reason}") from reason
        keys = frozenset(line.strip() for line in lines) - {""}
        keys = frozenset(key for key in keys if not key.startswith("#"))
        if not keys:
            raise ConfigError(f"{self.api_keys_file} has no key: write one a line")
        return keys

    def address(self) -> tuple[str, int]:
        """Host and port of `listen`.

        Raises:
            ConfigError: it is no HOST:PORT.
        """
        host, colon, port = self.listen.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise ConfigError(f"{self.listen!r} is not HOST:PORT, for example 127.0.0.1:8000")
        return host.strip("[]"), int(port)

    def _check_exposure(self) -> None:
        self.address()
        self.api_keys()
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key go together; one of them is missing")
        for file in (self.tls_cert, self.tls_key):
            if file is not None and not file.is_file():
                raise ConfigError(f"cannot read {file}: there is no such file")
        guarded = self.tls_cert is not None and self.api_keys_file is not None
        if not self.insecure and not guarded and not is_loopback(self.listen):
            raise ConfigError(
                f"listen {self.listen} can be reached from other machines: give --api-key-file, "
                "--tls-cert and --tls-key, or listen on 127.0.0.1, or write --insecure if "
                "everything that can reach this port may use the model"
            )
