"""Following what a real store holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from packkv.client import Client, ClientConfig
from packkv.router.holdings import Holdings, short_names
from tests.clients.conftest import StoreProcess, Worker
from tests.clients.router.conftest import eventually

TOKENS = list(range(64 * 5))


@pytest.fixture
def followed(own_store: StoreProcess) -> Iterator[Holdings]:
    made = Holdings(own_store.target, ClientConfig())
    made.start()
    yield made
    made.close()


def test_holdings_follow_a_store_through_its_end_and_its_return(
    own_store: StoreProcess, followed: Holdings, worker: Worker
) -> None:
    eventually(lambda: followed.is_current, "it is followed")
    names = worker.hashes(TOKENS)
    blocks = [data for _, data in worker.blocks(TOKENS)]
    with Client(own_store.target) as client:
        client.put(list(zip(names, blocks, strict=True))[:3])
        eventually(lambda: followed.run(short_names(names)) == 3, "three blocks are known")
        own_store.kill()
        eventually(lambda: not followed.is_current, "the store is missed")
        assert followed.run(short_names(names)) == 0
        own_store.start(own_store.target)
        eventually(lambda: followed.run(short_names(names)) == 3, "they are known again")
        client.clear()
    eventually(lambda: len(followed) == 0, "they are gone")
