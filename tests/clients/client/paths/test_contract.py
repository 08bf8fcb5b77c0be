"""Every way to move payloads means the same: one suite over all of them, against a real store."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from packkv.client import Arrived, Client, Miss, PutStatus, Span
from packkv.errors import (
    ClientClosed,
    InvalidRequest,
    LimitExceeded,
    ProtocolViolation,
    StoreError,
)
from tests.clients.client.paths.conftest import Connect, contents, named, names, payloads
from tests.clients.conftest import StoreProcess
from tests.store.conftest import MIB, Payload, build_payload, build_prefix


def test_what_is_put_comes_back(client: Client, path: str) -> None:
    prefix = build_prefix("a", 20, section_bytes=30_000)
    assert client.path is None
    assert [r.status for r in client.put(named(prefix))] == [PutStatus.STORED] * 20
    got = client.get(names(prefix))
    assert payloads(got) == [b.data for b in prefix]
    assert [b.received for b in got] == [((0, len(b.data)),) for b in prefix]
    assert client.path == path
    assert client.transfers == {path: 2}


def test_misses_are_answers_in_their_place(client: Client) -> None:
    prefix = build_prefix("a", 4)
    client.put(named([prefix[0], prefix[2]]))
    got = client.get(names(prefix))
    assert [b.miss for b in got] == [None, Miss.ABSENT, None, Miss.ABSENT]
    assert bytes(got[2].data or b"") == prefix[2].data
    assert client.get([bytes(32)])[0].miss is Miss.ABSENT


@pytest.mark.parametrize(
    ("layers", "heads"),
    [
        (Span(0, 1), None),
        (Span(1, 2), None),
        (Span(3, 9), None),
        (Span(9, 1), None),
        (None, Span(1, 1)),
        (None, Span(0, 2)),
        (Span(1, 2), Span(1, 1)),
        (Span(0, 0), Span(0, 0)),
    ],
)
def test_parts_of_payloads_are_those_of_grpc_and_zeros(
    client: Client, plain: Client, layers: Span | None, heads: Span | None
) -> None:
    prefix = build_prefix("a", 5)
    client.put(named(prefix[:3] + prefix[4:]))
    # memory that has held all of it before must not show it
    client.get(names(prefix))
    got = client.get(names(prefix), layers=layers, heads=heads)
    assert contents(got) == contents(plain.get(names(prefix), layers=layers, heads=heads))
    for block, payload in zip(got, prefix, strict=True):
        if block.data is not None:
            zeros = bytearray(payload.data)
            at = 0
            for offset, length in [*block.received, (len(payload.data), 0)]:
                zeros[at:offset] = bytes(offset - at)
                at = offset + length
            assert bytes(block.data) == bytes(zeros)


def test_heads_that_a_block_lacks_are_a_miss(client: Client) -> None:
    prefix = build_prefix("a", 2, first_head=4, heads=2)
    client.put(named(prefix))
    assert [b.miss for b in client.get(names(prefix), heads=Span(4, 2))] == [None, None]
    assert [b.miss for b in client.get(names(prefix), heads=Span(3, 2))] == [Miss.HEADS] * 2


def test_more_bytes_than_the_caller_takes_are_refused(client: Client) -> None:
    prefix = build_prefix("a", 3)
    client.put(named(prefix))
    size = sum(len(b.data) for b in prefix)
    assert len(client.get(names(prefix), max_bytes=size)) == 3
    with pytest.raises(ProtocolViolation, match=f"limit is {size - 1}"):
        client.get(names(prefix), max_bytes=size - 1)
    assert bytes(client.get(names(prefix))[0].data or b"") == prefix[0].data


@pytest.mark.parametrize(
    ("chain_hashes", "layers", "error"),
    [
        ([], None, InvalidRequest),
        ([bytes(31)], None, InvalidRequest),
        ([bytes(32)] * 16_385, None, LimitExceeded),
        ([bytes(32)], Span(65_535, 1), LimitExceeded),
    ],
    ids=["none", "short", "too many", "range"],
)
def test_a_wrong_get_ends_alike(
    client: Client, chain_hashes: list[bytes], layers: Span | None, error: type[StoreError]
) -> None:
    with pytest.raises(error):
        client.get(chain_hashes, layers=layers)
    assert client.get([bytes(32)])[0].miss is Miss.ABSENT


def test_as_many_blocks_as_a_get_may_have(client: Client) -> None:
    prefix = build_prefix("a", 2)
    client.put(named(prefix))
    got = client.get([prefix[0].chain_hash, *([bytes(32)] * 16_382), prefix[1].chain_hash])
    assert len(got) == 16_384
    assert bytes(got[0].data or b"") == prefix[0].data
    assert bytes(got[-1].data or b"") == prefix[1].data


def test_bytes_are_counted_as_they_come(client: Client) -> None:
    prefix = build_prefix("a", 6)
    client.put(named(prefix))
    came: list[int] = []
    client.get(names(prefix), on_bytes=came.append)
    assert sum(came) == sum(len(b.data) for b in prefix)


def test_whole_payloads_come_layer_by_layer(client: Client, path: str) -> None:
    prefix = build_prefix("a", 6, layers=4, section_bytes=130_000)
    client.put(named(prefix[:2] + prefix[3:]))
    seen: list[Arrived] = []
    fronts: list[list[bytes]] = []

    def look(arrived: Arrived) -> None:
        seen.append(arrived)
        parts = zip(arrived.blocks, arrived.ends, strict=True)
        fronts.append([bytes((block.data or b"")[:end]) for block, end in parts])

    got = client.get(names(prefix), on_layers=look, groups=4)
    assert contents(got) == contents(client.get(names(prefix)))
    # what was there once stayed as it was
    for front in fronts:
        for begin, block in zip(front, got, strict=True):
            assert begin == bytes((block.data or b"")[: len(begin)])
    assert seen[-1].ends == [len(block.data or b"") for block in got]
    assert all(one.blocks is seen[0].blocks for one in seen)
    if path == "shared-memory":
        assert len(seen) == 1
        return
    # no block is ahead of another by more than a layer and a frame
    assert len(seen) >= 5
    for one in seen[:-1]:
        ends = [end for end, block in zip(one.ends, got, strict=True) if block.data]
        assert max(ends) - min(ends) < 2 * 130_000 + 2 * MIB


def test_what_the_receiver_raises_ends_the_get_and_comes_out(client: Client) -> None:
    prefix = build_prefix("a", 3)
    client.put(named(prefix))

    def refuse(arrived: Arrived) -> None:
        raise TimeoutError("the receiver's own")

    for _ in range(5):
        with pytest.raises(TimeoutError, match="the receiver's own"):
            client.get(names(prefix), on_layers=refuse)
    # it is no fault of the store
    assert client.breaker.is_closed
    assert payloads(client.get(names(prefix))) == [b.data for b in prefix]


def test_layers_can_come_one_by_one_only_of_whole_payloads(client: Client) -> None:
    for wrong in (
        {"layers": Span(0, 1)},
        {"heads": Span(0, 1)},
        {"groups": 0},
        {"groups": 1 << 16},
    ):
        with pytest.raises(InvalidRequest):
            client.get([bytes(32)], on_layers=print, **wrong)


def test_each_block_of_a_put_has_its_own_answer(client: Client) -> None:
    good, known, other, last = build_prefix("a", 4)
    client.put(named([known]))
    damaged = bytearray(other.data)
    damaged[-1] ^= 1
    results = client.put(
        [
            (good.chain_hash, good.data),
            (known.chain_hash, memoryview(known.data)),
            (other.chain_hash, damaged),
            (other.chain_hash, good.data),
            (other.chain_hash, b""),
            (last.chain_hash, bytearray(last.data)),
        ]
    )
    stored, present, refused = PutStatus.STORED, PutStatus.ALREADY_PRESENT, PutStatus.REJECTED
    assert [r.status for r in results] == [stored, present, refused, refused, refused, stored]
    assert [bool(r.reason) for r in results] == [r.status is refused for r in results]
    assert [r.chain_hash for r in results][:2] == [good.chain_hash, known.chain_hash]
    assert [b.miss for b in client.get([other.chain_hash])] == [Miss.ABSENT]


def test_a_put_of_nothing_is_no_error(client: Client) -> None:
    assert client.put([]) == []


def test_a_put_larger_than_what_is_under_way_at_one_time(
    store: StoreProcess, client: Client
) -> None:
    # one block is larger than what a client lays down for its server in one go
    root = bytes(32)
    large = build_payload(bytes([1]) * 32, root, section_bytes=5 * MIB)
    others = build_prefix("a", 12, section_bytes=MIB // 3)
    blocks = [*others[:6], large, *others[6:]]
    assert len(large.data) > 16 * MIB
    results = client.put(named(blocks))
    assert [r.status for r in results] == [PutStatus.STORED] * 13
    got = client.get(names(blocks))
    assert payloads(got) == [block.data for block in blocks]


def test_a_block_over_the_limit_ends_the_put(client: Client) -> None:
    first = build_prefix("a", 1)[0]
    with pytest.raises(LimitExceeded):
        client.put([(first.chain_hash, first.data), (bytes(32), bytes(65 * MIB))])
    assert client.get([bytes(32)])[0].miss is Miss.ABSENT


def test_a_name_of_the_wrong_length_ends_the_put(client: Client) -> None:
    with pytest.raises(InvalidRequest):
        client.put([(bytes(31), bytes(1000))])
    assert client.put([]) == []


def test_what_the_callers_iterable_raises_comes_out_and_finished_blocks_stay(
    client: Client,
) -> None:
    prefix = build_prefix("a", 3)

    def blocks() -> Iterator[tuple[bytes, bytes]]:
        yield from named(prefix[:2])
        raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"):
        client.put(blocks())
    assert [b.miss for b in client.get(names(prefix))] == [None, None, Miss.ABSENT]


def test_threads_share_a_client(client: Client) -> None:
    prefixes = [build_prefix(f"p{number}", 8) for number in range(8)]

    def work(prefix: list[Payload]) -> bool:
        for _ in range(5):
            client.put(named(prefix))
            got = client.get(names(prefix))
            if payloads(got) != [b.data for b in prefix]:
                return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, prefixes))


def test_payloads_outlive_later_calls_and_the_client(store: StoreProcess, connect: Connect) -> None:
    first, second = build_prefix("a", 3), build_prefix("b", 3)
    client = connect(store.target)
    client.put(named(first) + named(second))
    kept = client.get(names(first))
    for _ in range(3):
        client.get(names(second))
    client.close()
    assert payloads(kept) == [b.data for b in first]


def test_a_prefix_larger_than_the_ram_of_the_store_comes_all_the_same(
    tmp_path: Path, path: str, connect: Connect
) -> None:
    store = StoreProcess(tmp_path / "store", ("--ram-bytes", "2MiB"))
    store.start()
    try:
        prefix = build_prefix("a", 24, section_bytes=16_000)
        client = connect(store.target, paths=(path, "grpc"))
        assert [r.status for r in client.put(named(prefix))] == [PutStatus.STORED] * 24
        got = client.get(names(prefix))
        assert payloads(got) == [b.data for b in prefix]
    finally:
        store.kill()


def test_a_closed_client_says_so(store: StoreProcess, connect: Connect) -> None:
    client = connect(store.target)
    client.put(named(build_prefix("a", 1)))
    client.close()
    with pytest.raises(ClientClosed):
        client.get([bytes(32)])
    with pytest.raises(ClientClosed):
        client.put([])
