"""Why a request is refused or ends early, as the OpenAI API says it.

ApiError                  500  the server broke inside
├── BadRequest            400  the request itself is wrong
├── AccessRefused         401  no API key, or an unknown one
├── NotFound              404  no such model or path
├── BodyTooLarge          413
├── QueueFull             429  too many requests wait: come back later
├── Unready               503  still loading, or leaving: ask another server
└── OutOfTime             504  the request's time is over
"""

from __future__ import annotations

from typing import ClassVar

from packkv.errors import PackKVError


class ApiError(PackKVError):
    """Base: a sentence for the caller, and where in the request the trouble is."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    # whether the same request may succeed later; clients that retry by themselves obey it
    retry_after_s: ClassVar[int | None] = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code

    def body(self) -> dict[str, object]:
        """The OpenAI API's error object."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Whether and when to try again, as clients of the OpenAI API understand it."""
        if self.retry_after_s is None:
            return {"x-should-retry": "false"}
        return {"retry-after": str(self.retry_after_s), "x-should-retry": "true"}


class BadRequest(ApiError):
    """The request asks for what cannot be, or for what this server does not do."""

    status = 400
    kind = "invalid_request_error"


class AccessRefused(ApiError):
    """No API key, or one that this server does not know."""

    status = 401
    kind = "invalid_request_error"


class NotFound(ApiError):
    """No such model, or no such path."""

    status = 404
    kind = "invalid_request_error"


class BodyTooLarge(ApiError):
    """The request has more bytes than are read."""

    status = 413
    kind = "invalid_request_error"


class QueueFull(ApiError):
    """As many requests wait as may wait."""

    status = 429
    kind = "rate_limit_error"
    retry_after_s = 1


class Unready(ApiError):
    """The model is not loaded yet, or the server is leaving, or there is none."""

    status = 503
    retry_after_s = 5


class OutOfTime(ApiError):
    """The request was not answered within its time."""

    status = 504
    kind = "timeout_error"
