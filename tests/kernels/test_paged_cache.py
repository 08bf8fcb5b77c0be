"""The paged cache: capacity, sharing by name, and sequences that grow into pages."""

from collections.abc import Sequence

import pytest
import torch

from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig
from packkv_kernels.errors import CacheFull, InvalidInput
from packkv_kernels.format import KVDtype, Payload, read_payload
from packkv_kernels.paged_cache import PagedCache, SequenceCache
from packkv_kernels.testing import assert_close, encode_payloads, random_kv, random_profile

SHAPE = CacheShape(layers=2, heads=2, head_dim=64)
PROFILE = random_profile(SHAPE)


def a_cache(codec: str = "hybrid", capacity_bytes: int = 4 << 20) -> PagedCache:
    config = CodecConfig.parse(codec)
    return PagedCache(
        SHAPE, config, PROFILE, capacity_bytes=capacity_bytes, kv_dtype=KVDtype.FLOAT32
    )


def payloads(count: int, codec: str = "hybrid") -> list[Payload]:
    """Blocks of different prefixes, named 1, 2, 3, …"""
    config = CodecConfig.parse(codec)
    found = []
    for number in range(1, count + 1):
        keys, values = random_kv(SHAPE, BLOCK_TOKENS, dtype=torch.float32, seed=number)
        (data,) = encode_payloads(
            keys, values, config, PROFILE, chain_hash=bytes([number]) * 32, root_hash=b"r" * 32
        )
        found.append(read_payload(data))
    return found


def tensors(tokens: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per layer K and V [heads, tokens, head_dim]."""
    keys, values = random_kv(SHAPE, tokens, dtype=torch.float32, seed=seed)
    return [(k.transpose(0, 1), v.transpose(0, 1)) for k, v in zip(keys, values, strict=True)]


def feed(
    row: SequenceCache,
    cache: PagedCache | None,
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> None:
    for layer, (keys, values) in enumerate(layers):
        row.append(layer, keys, values)
    if cache is not None:
        row.pack(cache)


def test_a_block_is_kept_once_however_many_sequences_share_it() -> None:
    cache = a_cache()
    (payload,) = payloads(1)
    first = cache.adopt(payload)
    used = cache.used_bytes
    assert cache.adopt(payload) is first
    assert cache.find(payload.header.chain_hash) is first
    assert (cache.used_bytes, first.holders) == (used, 3)


def test_a_released_block_stays_for_the_next_request_until_its_space_is_needed() -> None:
    # the last is the shortest, so that it fits where any other was
    blocks = sorted(payloads(4), key=lambda block: -len(block.data))
    cache = a_cache(capacity_bytes=3 * len(blocks[0].data))
    pages = [cache.adopt(block) for block in blocks[:3]]
    for page in (pages[1], pages[0]):
        cache.release(page)
    cache.adopt(blocks[3])
    assert cache.find(blocks[1].header.chain_hash) is None, "idle longest, so it went first"
    assert cache.find(blocks[0].header.chain_hash) is pages[0]
    assert cache.used_bytes <= cache.capacity_bytes


def test_held_pages_are_never_given_up() -> None:
    blocks = payloads(3)
    cache = a_cache(capacity_bytes=2 * max(len(block.data) for block in blocks))
    for block in blocks[:2]:
        cache.adopt(block)
    with pytest.raises(CacheFull, match=r"no room for a page of \d+ bytes"):
        cache.adopt(blocks[2])
    assert all(cache.find(block.header.chain_hash) for block in blocks[:2])


def test_the_slot_tables_grow_with_the_number_of_pages() -> None:
    cache = a_cache("hybrid:v_levels=4", capacity_bytes=16 << 20)
    pages = [cache.adopt(block) for block in payloads(70, "hybrid:v_levels=4")]
    assert sorted(page.slot for page in pages) == list(range(70))


@pytest.mark.parametrize("codec", ["hybrid", "packkv", "raw"])
def test_a_page_leaves_as_the_payload_it_came_as(codec: str) -> None:
    cache = a_cache(codec)
    (payload,) = payloads(1, codec)
    assert bytes(cache.payload(cache.adopt(payload))) == bytes(payload.data)


def test_payloads_that_do_not_fit_the_cache_are_refused() -> None:
    (payload,) = payloads(1, "packkv")
    with pytest.raises(InvalidInput, match="does not fit a cache"):
        a_cache("hybrid").adopt(payload)
    keys, values = random_kv(SHAPE, 63, dtype=torch.float32)
    (short,) = encode_payloads(keys, values, CodecConfig.parse("hybrid"), PROFILE)
    with pytest.raises(InvalidInput, match="does not fit a cache"):
        a_cache("hybrid").adopt(read_payload(short))


def test_a_sequence_packs_full_blocks_and_keeps_the_rest_exact() -> None:
    cache, row = a_cache(), SequenceCache(SHAPE)
    feed(row, cache, tensors(150))
    assert (row.packed_tokens, row.residual_tokens(0), row.residual_tokens(1)) == (128, 22, 22)
    assert row.tokens() == 150
    assert [page.header.sinks for page in row.pages] == [4, 0]
    assert [page.header.first_token for page in row.pages] == [0, 64]


def test_token_by_token_makes_the_same_pages_as_all_at_once() -> None:
    cache = a_cache()
    layers = tensors(130)
    at_once, one_by_one = SequenceCache(SHAPE), SequenceCache(SHAPE)
    feed(at_once, cache, layers)
    for token in range(130):
        feed(
            one_by_one,
            cache,
            [(k[:, token : token + 1], v[:, token : token + 1]) for k, v in layers],
        )
    assert [bytes(cache.payload(page)) for page in one_by_one.pages] == [
        bytes(cache.payload(page)) for page in at_once.pages
    ]


def test_the_recent_window_stays_exact() -> None:
    cache, row = a_cache(), SequenceCache(SHAPE, recent_window=70)
    feed(row, cache, tensors(133))
    assert row.packed_tokens == 0
    feed(row, cache, tensors(1))
    assert (row.packed_tokens, row.residual_tokens()) == (64, 70)


def test_a_full_cache_leaves_tokens_exact_and_packs_them_later() -> None:
    (block,) = payloads(1)
    cache = a_cache(capacity_bytes=int(1.5 * len(block.data)))
    blocker = cache.adopt(block)
    row = SequenceCache(SHAPE)
    feed(row, cache, tensors(64))
    assert (row.packed_tokens, row.residual_tokens()) == (0, 64)
    cache.release(blocker)
    row.pack(cache)
    assert (row.packed_tokens, row.residual_tokens()) == (64, 0)


def test_values_that_cannot_be_packed_stay_exact_for_good() -> None:
    cache, row = a_cache(), SequenceCache(SHAPE)
    layers = tensors(64)
    layers[1][1][0, 3, 3] = float("nan")
    feed(row, cache, layers)
    feed(row, cache, tensors(64))
    assert (row.packed_tokens, row.residual_tokens()) == (0, 128)


def test_forks_share_pages_and_part_ways_afterwards() -> None:
    cache, row = a_cache(), SequenceCache(SHAPE)
    feed(row, cache, tensors(100))
    used = cache.used_bytes
    twin = row.fork(cache)
    assert cache.used_bytes == used
    feed(twin, cache, tensors(30, seed=1))
    assert (row.tokens(), twin.tokens()) == (100, 130)
    assert twin.pages[0] is row.pages[0]
    row.release(cache)
    assert twin.packed_tokens == 128, "the other's pages are still held"
    twin.release(cache)
    assert cache.used_bytes == 0, "pages without a name go with their last holder"


def test_shortening_cuts_the_residual_exactly_and_a_page_as_it_was_packed() -> None:
    cache, row = a_cache("raw"), SequenceCache(SHAPE)
    layers = tensors(200)
    feed(row, cache, layers)
    row.shorten(cache, 195)
    assert (row.packed_tokens, row.residual_tokens(), row.restored_tokens) == (192, 3, 0)
    row.shorten(cache, 100)
    assert (row.packed_tokens, row.residual_tokens(), row.restored_tokens) == (64, 36, 100)
    keys, _ = row.append(1, layers[1][0][:, :0], layers[1][1][:, :0])
    assert_close(keys, layers[1][0][:, 64:100], 0.0, "raw is exact")
    row.shorten(cache, 0)
    assert (row.tokens(), cache.used_bytes) == (0, 0)
    with pytest.raises(InvalidInput, match="cannot keep 1 of 0 tokens"):
        row.shorten(cache, 1)


def test_a_named_page_is_found_by_the_next_sequence() -> None:
    cache, row = a_cache(), SequenceCache(SHAPE)
    feed(row, cache, tensors(64))
    assert cache.find(b"n" * 32) is None
    cache.name(row.pages[0], root_hash=b"r" * 32, chain_hash=b"n" * 32)
    row.release(cache)
    found = cache.find(b"n" * 32)
    assert found is not None
    header = read_payload(cache.payload(found)).header
    assert (header.chain_hash, header.root_hash) == (b"n" * 32, b"r" * 32)
