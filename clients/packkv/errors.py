"""What can go wrong between a worker and a store.

    PackKVError
    ├── ConfigError                the caller's settings cannot work (also a ValueError)
    ├── ClientClosed               the client was used after `close`
    ├── PrefixLost                 layers that a forward pass was begun without did not come
    └── StoreError                 the call did not do what it was asked; `.status` is gRPC's word
        ├── StoreUnavailable       no server there, or it is leaving
        │   └── CircuitOpen        it failed so often that it is left alone for `.retry_in_s`
        ├── DeadlineExceeded       no answer in time
        ├── InvalidRequest         the server finds the call wrong
        ├── LimitExceeded          too large, too many, or no room
        ├── AccessDenied           no credential, or not the right one
        ├── Unsupported            the server does not know this call
        ├── StoreFailure           the server broke inside
        └── ProtocolViolation      the server's answer contradicts itself or the protocol

A miss is an answer and never one of these. `PrefixCache` lets none of them through to the engine,
but for `PrefixLost` to those who asked for a prefix layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import grpc


class PackKVError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(PackKVError, ValueError):
    """The settings contradict each other or name something that is not there."""


class ClientClosed(PackKVError):
    """The client has been closed, or was closed while the call was under way."""


class PrefixLost(PackKVError):
    """A prefix that was coming layer by layer will not come whole: what was computed over it is
    void, and its cache good for nothing but `release`. To be computed anew, without that prefix.

    Args:
        reason: as in the misses of `packkv.prefix_cache.Counters`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the layers of a prefix did not come: {reason}")
        self.reason = reason


class StoreError(PackKVError):
    """The store did not do what it was asked."""

    def __init__(self, message: str, *, status: str = "") -> None:
        super().__init__(message)
        self.status = status


class StoreUnavailable(StoreError):
    """Nobody answers at the target, or the server is leaving."""


class CircuitOpen(StoreUnavailable):
    """The store failed several times in a row; it is asked again in `retry_in_s` seconds."""

    def __init__(self, retry_in_s: float) -> None:
        super().__init__(f"the store failed repeatedly; next try in {retry_in_s:.1f} s")
        self.retry_in_s = retry_in_s


class DeadlineExceeded(StoreError):
    """The answer, or its last byte, did not come in time."""


class InvalidRequest(StoreError):
    """The server finds the call itself wrong: repeating it cannot help."""


class LimitExceeded(StoreError):
    """The call is over a limit of the server, or the server has no room for it."""


class AccessDenied(StoreError):
    """The credential is missing, unknown, or not allowed to do this."""


class Unsupported(StoreError):
    """The server does not know this call: it is another version, or no PackKV store."""


class StoreFailure(StoreError):
    """The server broke inside."""


class ProtocolViolation(StoreError):
    """An answer contradicts itself, the request or the protocol. Nothing of it is used."""


# Every status has a place; the test of this table fails when gRPC grows a new one.
ERROR_OF_STATUS: Final[Mapping[grpc.StatusCode, type[StoreError]]] = MappingProxyType(
    {
        grpc.StatusCode.UNAVAILABLE: StoreUnavailable,
        # by the server: it has stopped, and this call did not end within its grace
        grpc.StatusCode.CANCELLED: StoreUnavailable,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
        grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
        grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
        grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
        grpc.StatusCode.NOT_FOUND: InvalidRequest,
        grpc.StatusCode.ALREADY_EXISTS: InvalidRequest,
        grpc.StatusCode.RESOURCE_EXHAUSTED: LimitExceeded,
        grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
        grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
        grpc.StatusCode.UNIMPLEMENTED: Unsupported,
        grpc.StatusCode.OK: ProtocolViolation,
        grpc.StatusCode.UNKNOWN: StoreFailure,
        grpc.StatusCode.ABORTED: StoreFailure,
        grpc.StatusCode.INTERNAL: StoreFailure,
        grpc.StatusCode.DATA_LOSS: StoreFailure,
    }
)


def store_error(failure: grpc.RpcError, call: str, target: str) -> StoreError:
    """The error of this package for a failed RPC: one sentence with the call and the target."""
    code = failure.code() if isinstance(failure, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = (failure.details() if isinstance(failure, grpc.Call) else "") or "no details given"
    error = ERROR_OF_STATUS.get(code, StoreFailure)
    return error(f"{call} at {target}: {code.name}: {details}", status=code.name)
