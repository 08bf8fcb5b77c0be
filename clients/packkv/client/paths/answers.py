"""What the server says to a call on a socket of ours: a refusal, a fault, the results of a Put."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

import grpc

from packkv.client.messages import Put, put_of
from packkv.client.paths import PathBroken
from packkv.errors import (
    ERROR_OF_STATUS,
    DeadlineExceeded,
    ProtocolViolation,
    StoreError,
    StoreFailure,
)
from packkv_protos.framing import FrameError

_STATUS_OF_CODE: Final = {code.value[0]: code for code in grpc.StatusCode}


class Refusal(Exception):
    """The server has answered with an ERROR frame: a gRPC status code and a sentence."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self._code = _STATUS_OF_CODE.get(code, grpc.StatusCode.UNKNOWN)

    def error(self, where: str) -> StoreError:
        kind = ERROR_OF_STATUS.get(self._code, StoreFailure)
        return kind(f"{where}: {self._code.name}: {self}", status=self._code.name)


class Result(Protocol):
    """What became of one block of a Put, as either protocol says it."""

    @property
    def status(self) -> int: ...

    @property
    def reason(self) -> str: ...


@contextmanager
def named(where: str, path: str) -> Iterator[None]:
    """What goes wrong in the body, as what this package calls it.

    Args:
        where: the call and its target, for people.
        path: the path, for people.
    """
    try:
        yield
    except Refusal as refusal:
        raise refusal.error(where) from None
    except FrameError as error:
        raise ProtocolViolation(f"{where}: {error}") from error
    except TimeoutError as error:
        status = "DEADLINE_EXCEEDED"
        raise DeadlineExceeded(f"{where}: {status}: {error}", status=status) from error
    except OSError as error:
        sentence = f"{where}, {path}: {error.strerror or error}"
        raise PathBroken(sentence, is_untouched=False) from error


def puts(results: Sequence[Result], names: Sequence[bytes]) -> list[Put]:
    """A Put for each block that was sent. Raises ProtocolViolation."""
    if len(results) != len(names):
        raise ProtocolViolation(f"Put: {len(results)} results for {len(names)} blocks")
    return [
        put_of(name, result.status, result.reason)
        for name, result in zip(names, results, strict=True)
    ]
