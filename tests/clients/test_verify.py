"""`packkv verify` against stores that are sound, that rot, and that lie."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from typer.testing import CliRunner, Result

from packkv.cli import app
from packkv.client import Client
from packkv_protos.v1 import admin_pb2, admin_pb2_grpc, block_store_pb2_grpc
from tests.clients.conftest import PuppetStore

if TYPE_CHECKING:
    from tests.clients.conftest import StoreProcess, Worker

TOKENS = list(range(64 * 6))


def verify(target: str, *options: str) -> Result:
    words = ["verify", "--target", target, *options]
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, words)


def found_in(target: str, status: int, *options: str) -> Any:
    result = verify(target, "--json", *options)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def fill(store: StoreProcess, worker: Worker) -> list[bytes]:
    """Publishes six blocks; their payloads."""
    payloads = [payload for _, payload in worker.blocks(TOKENS)]
    with Client(store.target) as client:
        client.put(list(zip(worker.hashes(TOKENS), payloads, strict=True)))
    return payloads


def flip(store: StoreProcess, payload: bytes, at: int) -> None:
    """Changes one bit of a payload in the files of a stopped store."""
    for file in store.data_dir.rglob("*"):
        content = bytearray(file.read_bytes()) if file.is_file() else bytearray()
        if (where := content.find(payload)) >= 0:
            content[where + at] ^= 4
            file.write_bytes(content)
            return
    raise AssertionError("no file has the payload")


def test_a_sound_store_is_status_0(store: StoreProcess, worker: Worker) -> None:
    payloads = fill(store, worker)
    found = found_in(store.target, 0)
    assert (found["blocks"], found["bytes"]) == (6, sum(map(len, payloads)))
    assert (found["sound"], found["corrupt"], found["missing"], found["damage"]) == (True, 0, 0, [])
    assert "6 blocks" in verify(store.target).stdout


def test_an_empty_store_is_sound(store: StoreProcess) -> None:
    assert found_in(store.target, 0)["blocks"] == 0


@pytest.mark.parametrize("place", ["first section", "last byte"])
def test_a_bit_that_flips_on_disk_is_found(
    own_store: StoreProcess, worker: Worker, place: str
) -> None:
    payloads = fill(own_store, worker)
    own_store.stop()
    # a section's first byte is behind header and table
    flip(own_store, payloads[2], 288 if place == "first section" else len(payloads[2]) - 1)
    own_store.start()
    found = found_in(own_store.target, 1)
    assert (found["blocks"], found["corrupt"], found["missing"]) == (6, 1, 0)
    (damage,) = found["damage"]
    assert damage["chain_hash"] == worker.hashes(TOKENS)[2].hex()
    assert damage["state"] == "corrupt"
    # the store does not have it any more, and nothing else is wrong
    assert found_in(own_store.target, 0)["blocks"] == 5


def test_every_rotten_block_is_named(own_store: StoreProcess, worker: Worker) -> None:
    payloads = fill(own_store, worker)
    own_store.stop()
    for number in (1, 4):
        flip(own_store, payloads[number], len(payloads[number]) - 1)
    own_store.start()
    text = verify(own_store.target)
    assert text.exit_code == 1
    named = [line.split()[1].rstrip(":") for line in text.stdout.splitlines()[:-1]]
    assert sorted(named) == sorted(worker.hashes(TOKENS)[number].hex() for number in (1, 4))
    assert "6 blocks" in text.stdout
    assert "2 corrupt" in text.stdout


class PuppetAdmin(admin_pb2_grpc.AdminServicer):
    """Lists what a test says, whether the store beside it has it or not."""

    def __init__(self) -> None:
        self.blocks: list[admin_pb2.ListedBlock] = []

    def Stats(self, request: Any, context: Any) -> admin_pb2.StatsReply:
        return admin_pb2.StatsReply(blocks=len(self.blocks))

    def List(self, request: admin_pb2.ListRequest, context: Any) -> admin_pb2.ListReply:
        behind = [one for one in self.blocks if one.chain_hash > request.after]
        return admin_pb2.ListReply(blocks=behind[: request.limit or 2])


@pytest.fixture
def liar(worker: Worker) -> Iterator[tuple[PuppetStore, PuppetAdmin]]:
    """A server that lists and has six sound blocks, until it is told otherwise."""
    server = grpc.server(ThreadPoolExecutor(8))
    store, admin = PuppetStore(), PuppetAdmin()  # type: ignore[abstract]
    block_store_pb2_grpc.add_BlockStoreServicer_to_server(store, server)
    admin_pb2_grpc.add_AdminServicer_to_server(admin, server)
    store.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    for index, name in enumerate(worker.hashes(TOKENS)):
        store.blocks[name] = worker.payload(TOKENS, index)
        listed = admin_pb2.ListedBlock(
            chain_hash=name,
            root_hash=worker.namespace.root_hash(),
            length=len(store.blocks[name]),
            first_token=64 * index,
            tokens=64,
        )
        admin.blocks.append(listed)
    admin.blocks.sort(key=lambda listed: listed.chain_hash)
    server.start()
    yield store, admin
    server.stop(0).wait()


def test_a_block_that_is_listed_and_not_there_is_missing(
    liar: tuple[PuppetStore, PuppetAdmin], worker: Worker
) -> None:
    store, _ = liar
    gone = worker.hashes(TOKENS)[3]
    del store.blocks[gone]
    found = found_in(store.target, 1)
    assert (found["blocks"], found["corrupt"], found["missing"]) == (6, 0, 1)
    assert found["damage"][0]["chain_hash"] == gone.hex()


def test_a_block_that_leaves_between_listing_and_fetching_is_no_damage(
    liar: tuple[PuppetStore, PuppetAdmin], worker: Worker
) -> None:
    store, admin = liar
    gone = worker.hashes(TOKENS)[3]
    honest = store._honest_frames

    def evict(request: Any) -> Any:
        store.blocks.pop(gone, None)
        admin.blocks = [one for one in admin.blocks if one.chain_hash != gone]
        return honest(request)

    store.frames = evict
    found = found_in(store.target, 0)
    # unless it left before its page was read
    assert (found["left"], found["blocks"]) in ((1, 5), (0, 5))


def test_a_block_that_is_found_corrupt_while_it_is_sent_does_not_hide_the_others(
    liar: tuple[PuppetStore, PuppetAdmin], worker: Worker
) -> None:
    store, admin = liar
    rotten = worker.hashes(TOKENS)[3]
    honest = store._honest_frames

    def put_aside(request: Any) -> Any:
        if rotten in request.chain_hashes and store.blocks.pop(rotten, b""):
            admin.blocks = [one for one in admin.blocks if one.chain_hash != rotten]
            raise OSError("the stream ends here, as it does for a store that reads from disk")
        return honest(request)

    store.frames = put_aside
    found = found_in(store.target, 1)
    assert (found["blocks"], found["corrupt"], found["left"]) == (6, 1, 0)
    assert found["damage"][0]["chain_hash"] == rotten.hex()


def test_a_sound_payload_under_another_name_is_corrupt(
    liar: tuple[PuppetStore, PuppetAdmin], worker: Worker
) -> None:
    store, _ = liar
    one, other = worker.hashes(TOKENS)[1:3]
    store.blocks[one], store.blocks[other] = store.blocks[other], store.blocks[one]
    found = found_in(store.target, 1)
    assert {damage["chain_hash"] for damage in found["damage"]} == {one.hex(), other.hex()}


def test_a_list_that_goes_round_in_circles_ends(liar: tuple[PuppetStore, PuppetAdmin]) -> None:
    store, admin = liar
    admin.blocks.reverse()
    result = verify(store.target)
    assert result.exit_code == 1
    assert "is not behind" in result.stderr


def test_no_store_is_status_1_and_a_wrong_option_status_2() -> None:
    assert verify("127.0.0.1:1").exit_code == 1
    assert verify("127.0.0.1:1", "--batch-mib", "0").exit_code == 2
