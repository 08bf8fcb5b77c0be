"""The gRPC channel of a client: sizes, keep-alive, encryption, and the credential of each call."""

from __future__ import annotations

from pathlib import Path

import grpc

from packkv.client.config import ClientConfig
from packkv.errors import ConfigError

# A profile may have 16 MiB; frames have 1 MiB, and 16,384 hashes half a MiB.
_MAX_MESSAGE_BYTES = 17 << 20

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    # a store that comes back is found within two seconds; gRPC's own bound is two minutes
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # a host that vanished without a word is noticed during a call, not after the kernel's 15 min
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # a store stands in the same network: a web proxy of the environment is never meant for it
    ("grpc.enable_http_proxy", 0),
    # two clients of a process share no connection, so closing one cannot disturb the other
    ("grpc.use_local_subchannel_pool", 1),
    # retries are the client's: it knows the deadline and what may be repeated
    ("grpc.enable_retries", 0),
)


def open_channel(target: str, config: ClientConfig) -> grpc.Channel:
    """A channel to `target`; connects with the first call.

    Raises:
        ConfigError: a TLS file cannot be read.
    """
    if not config.encrypted:
        return grpc.insecure_channel(target, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(config.tls_ca),
        private_key=_read(config.tls_key),
        certificate_chain=_read(config.tls_cert),
    )
    return grpc.secure_channel(target, credentials, options=_OPTIONS)


def metadata_of(config: ClientConfig) -> tuple[tuple[str, str], ...]:
    """What each call carries: the bearer token, if there is one."""
    return (("authorization", f"Bearer {config.token}"),) if config.token else ()


def _read(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as reason:
        raise ConfigError(f"cannot read {file}: {reason.strerror}") from reason
