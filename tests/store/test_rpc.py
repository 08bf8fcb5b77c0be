"""Good calls and bad ones, over a real server."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from packkv_protos.v1 import admin_pb2
from packkv_protos.v1 import block_store_pb2 as pb
from packkv_store import errors
from packkv_store.app import App
from tests.store.conftest import (
    MIB,
    Client,
    HandClock,
    Payload,
    build_payload,
    build_prefix,
    connected,
    put_frames,
    serving,
    small_config,
)


def hashes_of(payloads: list[Payload]) -> list[bytes]:
    return [payload.chain_hash for payload in payloads]


async def test_what_was_put_is_matched_and_comes_back(client: Client) -> None:
    prefix = build_prefix("a", 5)
    results = await client.put(prefix)
    assert [result.status for result in results] == [pb.PUT_STATUS_STORED] * 5
    assert [result.chain_hash for result in results] == hashes_of(prefix)
    match = await client.match(hashes_of(prefix), lease_ms=1000)
    assert match.blocks == 5
    assert list(match.lengths) == [len(payload.data) for payload in prefix]
    assert list(match.tiers) == [pb.TIER_RAM] * 5
    assert match.lease_id
    assert match.lease_ms == 1000
    assert match.miss == pb.MISS_REASON_UNSPECIFIED
    got = await client.get(hashes_of(prefix), lease_id=match.lease_id)
    assert [bytes(got.payloads[i]) for i in range(5)] == [payload.data for payload in prefix]


@pytest.mark.parametrize("frame", [1, 7, 4096, MIB])
async def test_frames_may_have_any_size(client: Client, frame: int) -> None:
    prefix = build_prefix("a", 2, layers=1, heads=1, section_bytes=64)
    await client.put(prefix, frame)
    got = await client.get(hashes_of(prefix))
    assert [bytes(got.payloads[i]) for i in range(2)] == [payload.data for payload in prefix]


async def test_a_match_ends_at_the_first_missing_block(client: Client) -> None:
    prefix = build_prefix("a", 5)
    await client.put(prefix[:2] + prefix[3:])
    match = await client.match(hashes_of(prefix))
    assert (match.blocks, match.miss) == (2, pb.MISS_REASON_ABSENT)
    assert match.lease_id == 0
    nothing = await client.match(hashes_of(prefix[2:3]), lease_ms=1000)
    assert (nothing.blocks, nothing.lease_id) == (0, 0)


async def test_a_block_put_again_is_already_present(client: Client) -> None:
    prefix = build_prefix("a", 2)
    await client.put(prefix[:1])
    results = await client.put(prefix + prefix)
    assert [result.status for result in results] == [
        pb.PUT_STATUS_ALREADY_PRESENT,
        pb.PUT_STATUS_STORED,
        pb.PUT_STATUS_ALREADY_PRESENT,
        pb.PUT_STATUS_ALREADY_PRESENT,
    ]


async def test_get_answers_a_miss_for_what_is_not_there(client: Client) -> None:
    prefix = build_prefix("a", 3)
    await client.put(prefix[::2])
    got = await client.get(hashes_of(prefix))
    assert got.misses == {1: pb.MISS_REASON_ABSENT}
    assert bytes(got.payloads[2]) == prefix[2].data


async def test_get_is_layer_major_in_frames_of_a_mebibyte(client: Client) -> None:
    prefix = build_prefix("a", 4, layers=8, heads=4, section_bytes=40_000)
    await client.put(prefix)
    got = await client.get(hashes_of(prefix))
    assert max(got.frames) == MIB
    # one frame of answers, then as few as can be
    assert len(got.frames) == 1 - (-sum(len(payload.data) for payload in prefix) // MIB)
    offsets = [offset for block, offset, _ in got.order if block == 0]
    assert offsets == sorted(offsets)
    heads = [(block, offset) for block, offset, _ in got.order[:4]]
    assert heads == [(0, 0), (1, 0), (2, 0), (3, 0)]
    # every block has had a third of its layers before any has had two thirds
    third = [i for i, (_, offset, _) in enumerate(got.order) if offset < 200_000]
    two_thirds = [i for i, (_, offset, _) in enumerate(got.order) if offset > 800_000]
    assert max(third) < min(two_thirds)


async def test_ranges_of_layers_and_heads_bring_their_sections_and_all_heads(
    client: Client,
) -> None:
    [payload] = build_prefix("a", 1, layers=6, heads=4, first_head=8)
    await client.put([payload])
    got = await client.get(
        [payload.chain_hash], layers=pb.Range(first=2, count=2), heads=pb.Range(first=9, count=2)
    )
    wanted = bytearray(len(payload.data))
    wanted[: payload.head_length] = payload.data[: payload.head_length]
    for layer in (2, 3):
        for head in (9, 10):
            row = 192 + 24 * (layer * 4 + head - 8)
            at = int.from_bytes(payload.data[row : row + 4], "little")
            end = at + int.from_bytes(payload.data[row + 4 : row + 8], "little")
            wanted[at:end] = payload.data[at:end]
    assert got.payloads[0] == wanted


async def test_a_block_without_the_wanted_heads_is_a_miss(client: Client) -> None:
    first = build_payload(b"1" * 32, b"r" * 32, heads=4, first_head=0)
    second = build_payload(b"2" * 32, b"r" * 32, heads=2, first_head=0)
    await client.put([first, second])
    hashes = [first.chain_hash, second.chain_hash]
    heads = pb.Range(first=2, count=2)
    match = await client.match(hashes, heads=heads)
    assert (match.blocks, match.miss) == (1, pb.MISS_REASON_HEADS)
    got = await client.get(hashes, heads=heads)
    assert got.misses == {1: pb.MISS_REASON_HEADS}


async def test_leases_are_renewed_and_released(client: Client, clock: HandClock) -> None:
    [payload] = build_prefix("a", 1)
    await client.put([payload])
    match = await client.match([payload.chain_hash], lease_ms=10**9)
    assert match.lease_ms == 60_000
    renewed = await client.blocks.Renew(pb.RenewRequest(lease_id=match.lease_id, lease_ms=5000))
    assert renewed.remaining_ms == 5000
    assert (await client.stats()).leases == 1
    clock.move(5)
    renewed = await client.blocks.Renew(pb.RenewRequest(lease_id=match.lease_id, lease_ms=5000))
    assert renewed.remaining_ms == 0
    await client.blocks.Release(pb.ReleaseRequest(lease_id=match.lease_id))
    assert (await client.stats()).leases == 0


async def test_the_first_profile_of_a_model_wins(client: Client) -> None:
    ask = pb.GetProfileRequest(model_digest=b"m" * 32)
    assert (await client.blocks.GetProfile(ask)).profile == b""
    for profile in (b"first", b"second"):
        put = pb.PutProfileRequest(model_digest=b"m" * 32, profile=profile)
        assert (await client.blocks.PutProfile(put)).profile == b"first"
    assert (await client.blocks.GetProfile(ask)).profile == b"first"


async def test_clear_takes_one_namespace_or_all(client: Client) -> None:
    one, two = build_prefix("one", 3), build_prefix("two", 2)
    await client.put(one + two)
    reply = await client.clear(one[0].root_hash)
    assert (reply.blocks, reply.bytes) == (3, sum(len(payload.data) for payload in one))
    assert (await client.match(hashes_of(one))).blocks == 0
    assert (await client.match(hashes_of(two))).blocks == 2
    assert (await client.clear()).blocks == 2
    stats = await client.stats()
    assert [tier.used_bytes for tier in stats.tiers] == [0]
    assert stats.blocks == 0


async def test_clear_waits_for_leases(client: Client, clock: HandClock, app: App) -> None:
    prefix = build_prefix("a", 2)
    await client.put(prefix)
    match = await client.match(hashes_of(prefix), lease_ms=5000)
    assert (await client.clear()).blocks == 2
    assert (await client.match(hashes_of(prefix))).blocks == 0
    assert not (await client.get(hashes_of(prefix), lease_id=match.lease_id)).misses
    clock.move(5)
    await app.store.residents.collect()
    assert len((await client.get(hashes_of(prefix))).misses) == 2
    assert (await client.stats()).blocks == 0


async def test_a_cleared_block_that_is_put_again_is_back(client: Client) -> None:
    prefix = build_prefix("a", 2)
    await client.put(prefix)
    await client.match(hashes_of(prefix), lease_ms=5000)
    await client.clear()
    await client.put(prefix)
    assert (await client.match(hashes_of(prefix))).blocks == 2


async def test_blocks_expire(clock: HandClock) -> None:
    async with (
        serving(small_config(ttl_seconds=10.0), clock) as app,
        connected(app.address) as client,
    ):
        [payload] = build_prefix("a", 1)
        await client.put([payload])
        clock.move(9)
        assert (await client.match([payload.chain_hash])).blocks == 1
        clock.move(2)
        assert (await client.match([payload.chain_hash])).blocks == 0
        await app.store.residents.expire()
        stats = await client.stats()
        assert stats.blocks == 0
        assert stats.counters["packkv_expired_blocks_total"] == 1


async def test_stats_count_what_happened(client: Client) -> None:
    prefix = build_prefix("a", 3)
    await client.put(prefix)
    await client.match([*hashes_of(prefix), b"x" * 32])
    await client.get(hashes_of(prefix))
    stats = await client.stats()
    counters = stats.counters
    size = sum(len(payload.data) for payload in prefix)
    assert counters["packkv_matched_blocks_total"] == 3
    assert counters["packkv_hits_total"] == 3
    assert counters['packkv_misses_total{reason="absent"}'] == 1
    assert counters['packkv_put_blocks_total{status="stored"}'] == 3
    assert counters["packkv_received_bytes_total"] == size
    assert counters["packkv_sent_bytes_total"] == size
    assert stats.node
    assert stats.version
    [ram] = stats.tiers
    assert (ram.tier, ram.blocks, ram.capacity_bytes) == ("ram", 3, 16 * MIB)


def broken(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


GOOD = build_payload(b"g" * 32, b"r" * 32)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (GOOD.data[:100], "length is 100"),
        (GOOD.data[:-16], "payload length"),
        (GOOD.data + bytes(16), "payload length"),
        (broken(GOOD.data, 0, 0), "magic"),
        (broken(GOOD.data, 8, 1), "format version"),
        (broken(GOOD.data, 10, 9), "codec"),
        (broken(GOOD.data, 14, 65), "tokens"),
        (broken(GOOD.data, 18, 0), "layers"),
        (broken(GOOD.data, 19, 255), "payload length"),
        (broken(GOOD.data, 22, 0), "heads"),
        (broken(GOOD.data, 27, 0x7C), "compute_ms"),
        (broken(GOOD.data, 40, GOOD.data[40] ^ 1), "head checksum"),
        (broken(GOOD.data, 176, GOOD.data[176] ^ 1), "head checksum"),
        (broken(GOOD.data, 193, GOOD.data[193] ^ 1), "head checksum"),
        (broken(GOOD.data, len(GOOD.data) - 1, GOOD.data[-1] ^ 1), "digest of the section"),
        (broken(GOOD.data, 400, GOOD.data[400] ^ 1), "digest of the section of layer 0, head 0"),
        (build_payload(b"o" * 32, b"r" * 32).data, "chain hash"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
async def test_a_payload_that_is_not_its_block_is_rejected(
    client: Client, data: bytes, reason: str
) -> None:
    bad = Payload(GOOD.chain_hash, GOOD.root_hash, data, GOOD.layers, GOOD.heads)
    other = build_prefix("other", 1)
    results = await client.put([bad, *other])
    assert [result.status for result in results] == [
        pb.PUT_STATUS_REJECTED,
        pb.PUT_STATUS_STORED,
    ]
    assert reason in results[0].reason
    assert (await client.match([GOOD.chain_hash])).blocks == 0
    await client.clear()
    assert [tier.used_bytes for tier in (await client.stats()).tiers] == [0]


def start(length: int, name: bytes = b"x" * 32) -> Any:
    return pb.PutFrame(starts=[pb.BlockStart(chain_hash=name, length=length)])


def put(*frames: Any) -> Callable[[Client], Any]:
    return lambda client: client.blocks.Put(iter(frames))


async def drained(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


INVALID, TOO_MUCH = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("call", "status", "says"),
    [
        (lambda c: c.match([]), INVALID, "chain_hashes is empty"),
        (lambda c: c.match([b"short"]), INVALID, "chain_hashes[0] is 5 bytes"),
        (lambda c: c.match([bytes(32)] * 16_385), TOO_MUCH, "16385; allowed: at most 16384"),
        (lambda c: c.match([bytes(32)], heads=pb.Range(first=65_535, count=9)), TOO_MUCH, "heads"),
        (lambda c: c.get([]), INVALID, "chain_hashes is empty"),
        (lambda c: c.get([bytes(31)]), INVALID, "31 bytes"),
        (lambda c: c.get([bytes(32)] * 16_385), TOO_MUCH, "16385"),
        (put(pb.PutFrame(data=b"x")), INVALID, "a start comes first"),
        (put(pb.PutFrame()), INVALID, "a start or data"),
        (put(start(300, b"name")), INVALID, "chain_hash is 4 bytes"),
        (put(start(1 << 40)), TOO_MUCH, "at most 67108864"),
        (put(start(300), start(300)), INVALID, "0 bytes of a block of 300"),
        (put(start(300), pb.PutFrame(data=bytes(299))), INVALID, "299 bytes of a block of 300"),
        (put(start(300), pb.PutFrame(data=bytes(301))), INVALID, "301 bytes"),
        (
            put(pb.PutFrame(starts=[*start(300).starts, *start(10).starts], data=bytes(200))),
            INVALID,
            "200 bytes of a block of 300",
        ),
        (put(start(4 * MIB), pb.PutFrame(data=bytes(MIB + 1))), TOO_MUCH, "1048576"),
        (
            lambda c: c.blocks.PutProfile(pb.PutProfileRequest(model_digest=b"m", profile=b"p")),
            INVALID,
            "model_digest is 1 bytes",
        ),
        (
            lambda c: c.blocks.PutProfile(pb.PutProfileRequest(model_digest=bytes(32))),
            INVALID,
            "profile is empty",
        ),
        (
            lambda c: c.blocks.PutProfile(
                pb.PutProfileRequest(model_digest=bytes(32), profile=bytes(16 * MIB + 1))
            ),
            TOO_MUCH,
            "at most 16777216",
        ),
        (lambda c: c.blocks.GetProfile(pb.GetProfileRequest()), INVALID, "model_digest"),
        (lambda c: c.admin.Clear(admin_pb2.ClearRequest(root_hash=b"r")), INVALID, "root_hash"),
    ],
)
async def test_a_wrong_call_ends_with_its_status(
    client: Client, call: Callable[[Client], Any], status: grpc.StatusCode, says: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(client)
    assert caught.value.code() is status
    assert says in (caught.value.details() or "")
    assert (await client.stats()).tiers[0].used_bytes == 0


async def test_unreadable_bytes_are_an_invalid_argument(app: App) -> None:
    async with grpc.aio.insecure_channel(app.address) as channel:
        call: Any = channel.stream_unary("/packkv.v1.BlockStore/Put")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(iter([b"\xff\xff\xff\xff"]))
    assert caught.value.code() is INVALID


def test_every_error_has_a_status() -> None:
    def tree(kind: type[errors.StoreError]) -> Iterator[type[errors.StoreError]]:
        for child in kind.__subclasses__():
            yield child
            yield from tree(child)

    assert set(tree(errors.StoreError)) == set(errors.STATUS)
    for status in errors.Status:
        assert grpc.StatusCode[status.name].value[0] == status
    for kind in errors.STATUS:
        assert kind.__name__ in (errors.__doc__ or "")


async def test_a_broken_stream_leaves_the_finished_blocks_and_nothing_else(
    client: Client,
) -> None:
    prefix = build_prefix("a", 3)

    async def broken_off() -> AsyncIterator[Any]:
        for frame in list(put_frames(prefix, 512))[:-1]:
            yield frame
        await asyncio.Event().wait()

    call = client.blocks.Put(broken_off())
    async with asyncio.timeout(60):
        while (await client.match(hashes_of(prefix))).blocks != 2:
            await asyncio.sleep(0.01)
        call.cancel()
        assert (await client.match(hashes_of(prefix))).blocks == 2
        await client.clear()
        # what is unfinished goes when the server hears of the end
        while (await client.stats()).tiers[0].used_bytes:
            await asyncio.sleep(0.01)


async def test_health_and_reflection_answer(app: App, client: Client) -> None:
    health: Any = health_pb2_grpc.HealthStub(client.channel)
    for name in ("", "packkv.v1.BlockStore", "packkv.v1.Admin"):
        reply = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    async for reply in stub.ServerReflectionInfo(iter([ask])):
        names = {service.name for service in reply.list_services_response.service}
    assert {"packkv.v1.BlockStore", "packkv.v1.Admin", "grpc.health.v1.Health"} <= names
