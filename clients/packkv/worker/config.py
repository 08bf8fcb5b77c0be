"""Every setting of a worker, made once at its start and passed in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from packkv.client import ClientConfig
from packkv.cold import Cold, as_cold
from packkv.errors import ConfigError
from packkv.serving.config import ServerConfig
from packkv_kernels.config import CodecConfig
from packkv_kernels.errors import CodecError

PLAIN = "none"
DTYPES = ("auto", "float32", "bfloat16", "float16")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig(ServerConfig):
    """Settings of one worker, beside those of any server. Seconds, bytes and tokens.

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
        cold: when blocks are published in cold form, as in `PrefixCacheConfig`.
        max_context: longest prompt and answer together; None: what the model knows.
        max_running: generations that move on together; 1 is one at a time.
        max_waiting: requests that wait for their turn; more are refused.
        request_s: from a request's arrival to its last token.
        grace_s: at the end, for running generations and for what is being published.
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
    cold: Cold = "auto"
    max_context: int | None = None
    max_running: int = 8
    max_waiting: int = 64
    request_s: float = 600.0
    grace_s: float = 30.0

    def __post_init__(self) -> None:
        ServerConfig.__post_init__(self)
        least = {"cache_bytes": 1 << 20, "max_running": 1, "max_waiting": 0}
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
        as_cold(self.cold)
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

    @property
    def is_plain(self) -> bool:
        """Whether the model runs without PackKV."""
        return self.codec == PLAIN
