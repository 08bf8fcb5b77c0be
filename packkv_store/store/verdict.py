"""What is to be said of bytes that have arrived: the head of a sound payload, or what is wrong.

Who copies a block to its place judges it at once, while its bytes are in the cache. Who receives it
there from a socket does not: a receiver that stops to judge has the sender stop as well, and that
costs more than to read the bytes from memory in another thread.
"""

from collections.abc import Iterable
from typing import TypeAlias

from packkv_store.block import ChainHash, PayloadHead, verify_payload
from packkv_store.errors import PayloadError

Verdict: TypeAlias = PayloadHead | PayloadError


def judge(payload: memoryview, chain_hash: ChainHash) -> Verdict:
    """Whether the payload is wholly the block that it is said to be. Nobody else may write it."""
    try:
        return verify_payload(payload, chain_hash)
    except PayloadError as error:
        return error


def judge_all(payloads: Iterable[tuple[memoryview | None, ChainHash]]) -> list[Verdict | None]:
    """A verdict for each; None where no bytes were wanted."""
    return [None if payload is None else judge(payload, name) for payload, name in payloads]
