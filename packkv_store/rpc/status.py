"""Ends a call with the gRPC status of the error that it raised."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from packkv_store import errors

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


@asynccontextmanager
async def status_errors(context: Context) -> AsyncIterator[None]:
    """Ends the call with the status of the error that its body raises."""
    try:
        yield
    except errors.StoreError as error:
        code = grpc.StatusCode[errors.STATUS[type(error)].name]
        log.debug("call ended with %s: %s", code.name, error)
        await context.abort(code, str(error))
