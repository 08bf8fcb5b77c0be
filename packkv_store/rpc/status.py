"""The one table from errors to gRPC statuses."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from packkv_store import errors

log = logging.getLogger(__name__)

STATUS: dict[type[errors.StoreError], grpc.StatusCode] = {
    errors.RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotPermitted: grpc.StatusCode.PERMISSION_DENIED,
    errors.PayloadError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NoRoom: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Quarantined: grpc.StatusCode.ABORTED,
    errors.CorruptBlock: grpc.StatusCode.DATA_LOSS,
    errors.TierFailure: grpc.StatusCode.UNAVAILABLE,
    errors.StreamTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
}

Context = grpc.aio.ServicerContext[Any, Any]


@asynccontextmanager
async def status_errors(context: Context) -> AsyncIterator[None]:
    """Ends the call with the status of the error that its body raises."""
    try:
        yield
    except errors.StoreError as error:
        code = STATUS[type(error)]
        log.debug("call ended with %s: %s", code.name, error)
        await context.abort(code, str(error))
