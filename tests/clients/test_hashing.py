import time
from collections.abc import Callable
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packkv.hashing import chain_hashes

ROOT = bytes(range(32))
INT32 = st.integers(-(2**31), 2**31 - 1)


def test_golden_values_never_change() -> None:
    hashes = chain_hashes(ROOT, list(range(1, 200)))
    assert [chain_hash.hex() for chain_hash in hashes] == [
        "011342cf454e9647d05b806f3c91bf59fbf1dc4d5d0ae4a7b988a2515fdbc405",
        "e2e4b54163d297bc1b942368f5664108049d2b9620674d2ed50c309f17ec6cf9",
        "1d93dd3070a08b8dd99633cc5829e76299bca7f02e65b42bd8da252f6a3d797f",
    ]


def test_a_hash_is_sha256_of_parent_and_little_endian_tokens() -> None:
    tokens = [7, -1, 2**31 - 1, -(2**31)]
    first = sha256(ROOT + b"\x07\0\0\0\xff\xff\xff\xff").digest()
    second = sha256(first + b"\xff\xff\xff\x7f\0\0\0\x80").digest()
    assert chain_hashes(ROOT, tokens, 2) == [first, second]


@given(st.lists(INT32, max_size=40), st.lists(INT32, max_size=40), st.integers(1, 5))
def test_prefixes_share_hashes_exactly_as_far_as_their_blocks_are_equal(
    left: list[int], right: list[int], block_size: int
) -> None:
    ours, theirs = chain_hashes(ROOT, left, block_size), chain_hashes(ROOT, right, block_size)
    assert len(ours) == len(left) // block_size
    for index, (a, b) in enumerate(zip(ours, theirs, strict=False), start=1):
        assert (a == b) == (left[: index * block_size] == right[: index * block_size])


@given(st.lists(INT32, max_size=20))
def test_every_integer_type_gives_the_same_names(tokens: list[int]) -> None:
    expected = chain_hashes(ROOT, tokens, 2)
    assert chain_hashes(ROOT, np.array(tokens, np.int64), 2) == expected
    assert chain_hashes(ROOT, np.array(tokens, np.int32), 2) == expected
    assert chain_hashes(ROOT, np.array(tokens, ">i4"), 2) == expected
    assert chain_hashes(ROOT, np.repeat(np.array(tokens, np.int64), 2)[::2], 2) == expected


@pytest.mark.parametrize("token", [2**31, 2**32, -(2**31) - 1, 2**63])
def test_a_token_beyond_int32_is_refused_not_wrapped(token: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        chain_hashes(ROOT, np.array([0, token], np.uint64 if token > 0 else np.int64), 2)


def test_what_is_no_row_of_integers_is_refused() -> None:
    with pytest.raises(ValueError, match="integers"):
        chain_hashes(ROOT, np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="row"):
        chain_hashes(ROOT, np.zeros((2, 64), np.int64))
    with pytest.raises(ValueError, match="root hash"):
        chain_hashes(b"short", [1])
    with pytest.raises(ValueError, match="block_size"):
        chain_hashes(ROOT, [1], 0)


def test_another_root_changes_every_hash() -> None:
    tokens = list(range(256))
    assert not set(chain_hashes(ROOT, tokens)) & set(chain_hashes(bytes(32), tokens))


def test_tokens_are_hashed_by_the_row_and_not_one_by_one() -> None:
    tokens = np.arange(131_072, dtype=np.int64)
    data = tokens.astype("<i4").tobytes()
    turns = [(_cpu_s(lambda: chain_hashes(ROOT, tokens)), _cpu_s(lambda: sha256(data).digest()))
             for _ in range(9)]  # fmt: skip
    chained, digest = (min(times) for times in zip(*turns, strict=True))
    assert chained < 30 * digest, f"{1000 * chained:.1f} and {1000 * digest:.2f} ms of CPU"


def _cpu_s(call: Callable[[], object]) -> float:
    started = time.thread_time()
    call()
    return time.thread_time() - started
