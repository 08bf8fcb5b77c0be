"""The paged cache: capacity, sharing by name, and sequences that grow into pages.

One contract for pages on the host and on a device. Without a GPU the device is Triton's
interpreter: test_triton_interpreted.py runs these tests under it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from packkv_kernels.attention import PackedLayer, attend
from packkv_kernels.backend import available_backends
from packkv_kernels.config import BLOCK_TOKENS, CacheShape, CodecConfig
from packkv_kernels.errors import CacheFull, InvalidInput, PayloadError
from packkv_kernels.format import (
    KVDtype,
    Payload,
    read_payload,
    resident_sections,
    resident_words,
)
from packkv_kernels.paged_cache import PagedCache, SequenceCache
from packkv_kernels.testing import assert_close, encode_payloads, random_kv, random_profile

SHAPE = CacheShape(layers=2, heads=1, head_dim=16)
PROFILE = random_profile(SHAPE)


NewCache = Callable[..., PagedCache]


@pytest.fixture(params=["host", pytest.param("device", marks=pytest.mark.gpu)])
def a_cache(request: pytest.FixtureRequest) -> NewCache:
    """Makes caches on the host or on a device."""
    on_host = request.param == "host"
    if not on_host and "triton" not in available_backends():
        pytest.skip("neither a GPU nor TRITON_INTERPRET=1")
    device = torch.device("cuda" if torch.cuda.is_available() and not on_host else "cpu")

    def new_cache(
        codec: str = "hybrid", capacity_bytes: int = 4 << 20, max_pages: int | None = None
    ) -> PagedCache:
        return PagedCache(
            SHAPE,
            CodecConfig.parse(codec),
            PROFILE,
            capacity_bytes=capacity_bytes,
            kv_dtype=KVDtype.FLOAT32,
            device=device,
            backend="cpu" if on_host else "triton",
            max_pages=max_pages,
        )

    return new_cache


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


def test_a_block_is_kept_once_however_many_sequences_share_it(a_cache: NewCache) -> None:
    cache = a_cache()
    (payload,) = payloads(1)
    first = cache.adopt(payload)
    used = cache.used_bytes
    assert cache.adopt(payload) is first
    assert cache.find(payload.header.chain_hash) is first
    assert (cache.used_bytes, first.holders) == (used, 3)


def test_a_released_block_stays_for_the_next_request_until_its_space_is_needed(
    a_cache: NewCache,
) -> None:
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


def test_held_pages_are_never_given_up(a_cache: NewCache) -> None:
    blocks = payloads(3)
    cache = a_cache(capacity_bytes=2 * max(len(block.data) for block in blocks))
    for block in blocks[:2]:
        cache.adopt(block)
    with pytest.raises(CacheFull, match=r"no room for a page of \d+ bytes"):
        cache.adopt(blocks[2])
    assert all(cache.find(block.header.chain_hash) for block in blocks[:2])


def test_the_slot_tables_grow_with_the_number_of_pages(a_cache: NewCache) -> None:
    cache = a_cache("hybrid:v_levels=4", capacity_bytes=16 << 20)
    pages = [cache.adopt(block) for block in payloads(70, "hybrid:v_levels=4")]
    assert sorted(page.slot for page in pages) == list(range(70))


def test_tables_without_room_give_up_pages_that_nobody_holds_and_then_refuse(
    a_cache: NewCache,
) -> None:
    cache = a_cache(max_pages=2)
    if isinstance(cache.layer(0), PackedLayer):
        pytest.skip("the host's tables grow")
    first, second, third = payloads(3)
    cache.release(cache.adopt(first))
    pages = [cache.adopt(block) for block in (second, third)]
    assert cache.find(first.header.chain_hash) is None
    with pytest.raises(CacheFull, match="all 2 that the tables have are held"):
        cache.adopt(first)
    used = cache.used_bytes
    cache.release(pages[0])
    cache.adopt(first)
    assert cache.used_bytes <= used


def test_a_prefix_is_taken_in_up_to_the_first_block_that_must_be_refused(
    a_cache: NewCache,
) -> None:
    blocks = payloads(4)
    cache = a_cache()
    known = cache.adopt(blocks[1])
    broken = bytearray(blocks[2].data)
    # a section that claims another number of tokens; nobody has checked its digest yet
    broken[int(blocks[2].sections[0, 0]) + 4] ^= 1
    found = cache.adopt_all([*blocks[:2], replace(blocks[2], data=memoryview(broken)), blocks[3]])
    assert isinstance(found.refusal, PayloadError)
    assert [page.header.chain_hash[0] for page in found.pages] == [1, 2]
    assert (found.pages[1], known.holders) == (known, 2)
    assert cache.find(blocks[2].header.chain_hash) is None
    small = a_cache(capacity_bytes=int(1.5 * len(blocks[0].data)))
    cut = small.adopt_all(blocks[:2])
    assert isinstance(cut.refusal, CacheFull)
    assert len(cut.pages) == 1


@pytest.mark.parametrize("codec", ["hybrid", "raw"])
def test_attention_reads_a_page_where_another_was_before(a_cache: NewCache, codec: str) -> None:
    first, second = sorted(payloads(2, codec), key=lambda block: -len(block.data))
    cache = a_cache(codec, capacity_bytes=int(1.3 * len(first.data)) if codec != "raw" else 20_000)
    cache.release(cache.adopt(first))
    page = cache.adopt(second)
    assert cache.find(first.header.chain_hash) is None, "its place was taken"
    tables = cache.page_tables(1, 4)
    tables.update([np.array([page.slot], np.int32)])
    query, *exact = (torch.randn(1, 1, SHAPE.head_dim).to(cache.device) for _ in range(3))
    own = [[part] for part in exact]
    (found,) = attend([query], cache.layer(1), tables, *own, scaling=0.25)
    unpacked = cache.unpack(page)
    keys, values = (torch.cat([unpacked[side][1], exact[side]], 1) for side in (0, 1))
    wanted = (query @ keys.transpose(1, 2) * 0.25).softmax(-1) @ values
    assert_close(found, wanted, 4e-3, codec)


@pytest.mark.parametrize("codec", ["hybrid", "packkv", "raw"])
def test_a_page_leaves_as_the_payload_it_came_as(a_cache: NewCache, codec: str) -> None:
    cache = a_cache(codec)
    (payload,) = payloads(1, codec)
    assert bytes(cache.payload(cache.adopt(payload))) == bytes(payload.data)


@pytest.mark.parametrize("codec", ["hybrid", "packkv", "raw"])
def test_a_page_that_is_filled_layer_by_layer_is_like_one_that_came_whole(
    a_cache: NewCache, codec: str
) -> None:
    cache = a_cache(codec)
    # the memory has held others before
    for page in [cache.adopt(payload) for payload in payloads(4, codec)[2:]]:
        cache.release(page)
    assert cache.forget() == 2
    arriving = payloads(2, codec)
    pages = [
        cache.reserve(one.header, resident_words(one.header, len(one.data))) for one in arriving
    ]
    for layer in range(SHAPE.layers):
        assert cache.find(bytes([1]) * 32) is None
        layers = range(layer, layer + 1)
        cache.fill(pages, layers, [resident_sections(one, layers) for one in arriving])
    cache.finish(pages)
    for number, (page, payload) in enumerate(zip(pages, arriving, strict=True), 1):
        assert cache.payload(page) == payload.data
        assert cache.find(bytes([number]) * 32) is page
    with pytest.raises(InvalidInput, match="room for"):
        cache.fill(pages, range(1, 2), [resident_sections(one) for one in arriving])
    # one that never came is given up without a trace
    used = cache.used_bytes
    header = payloads(4, codec)[3].header
    cache.release(cache.reserve(header, 64))
    assert cache.used_bytes == used
    assert cache.find(bytes([4]) * 32) is None


def test_payloads_that_do_not_fit_the_cache_are_refused(a_cache: NewCache) -> None:
    (payload,) = payloads(1, "packkv")
    with pytest.raises(InvalidInput, match="does not fit a cache"):
        a_cache("hybrid").adopt(payload)
    keys, values = random_kv(SHAPE, 63, dtype=torch.float32)
    (short,) = encode_payloads(keys, values, CodecConfig.parse("hybrid"), PROFILE)
    with pytest.raises(InvalidInput, match="does not fit a cache"):
        a_cache("hybrid").adopt(read_payload(short))


def test_a_sequence_packs_full_blocks_and_keeps_the_rest_exact(a_cache: NewCache) -> None:
    cache, row = a_cache(), SequenceCache(SHAPE)
    feed(row, cache, tensors(150))
    assert (row.packed_tokens, row.residual_tokens(0), row.residual_tokens(1)) == (128, 22, 22)
    assert row.tokens() == 150
    assert [page.header.sinks for page in row.pages] == [4, 0]
    assert [page.header.first_token for page in row.pages] == [0, 64]


def test_token_by_token_makes_the_same_pages_as_all_at_once(a_cache: NewCache) -> None:
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


def test_the_recent_window_stays_exact(a_cache: NewCache) -> None:
    cache, row = a_cache(), SequenceCache(SHAPE, recent_window=70)
    feed(row, cache, tensors(133))
    assert row.packed_tokens == 0
    feed(row, cache, tensors(1))
    assert (row.packed_tokens, row.residual_tokens()) == (64, 70)


def test_a_full_cache_leaves_tokens_exact_and_packs_them_later(a_cache: NewCache) -> None:
    (block,) = payloads(1)
    cache = a_cache(capacity_bytes=int(1.5 * len(block.data)))
    blocker = cache.adopt(block)
    row = SequenceCache(SHAPE)
    feed(row, cache, tensors(64))
    assert (row.packed_tokens, row.residual_tokens()) == (0, 64)
    cache.release(blocker)
    row.pack(cache)
    assert (row.packed_tokens, row.residual_tokens()) == (64, 0)


def test_values_that_cannot_be_packed_stay_exact_for_good(a_cache: NewCache) -> None:
    cache, row = a_cache(), SequenceCache(SHAPE)
    layers = tensors(64)
    layers[1][1][0, 3, 3] = float("nan")
    feed(row, cache, layers)
    feed(row, cache, tensors(64))
    assert (row.packed_tokens, row.residual_tokens()) == (0, 128)


def test_forks_share_pages_and_part_ways_afterwards(a_cache: NewCache) -> None:
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


def test_shortening_cuts_the_residual_exactly_and_a_page_as_it_was_packed(
    a_cache: NewCache,
) -> None:
    cache, row = a_cache("raw"), SequenceCache(SHAPE)
    layers = tensors(200)
    feed(row, cache, layers)
    row.shorten(cache, 195)
    assert (row.packed_tokens, row.residual_tokens(), row.restored_tokens) == (192, 3, 0)
    row.shorten(cache, 100)
    assert (row.packed_tokens, row.residual_tokens(), row.restored_tokens) == (64, 36, 100)
    held = row.append(1, layers[1][0][:, :0], layers[1][1][:, :0])
    assert held.tokens == 36
    assert_close(held.keys[:, :36], layers[1][0][:, 64:100], 0.0, "raw is exact")
    row.shorten(cache, 0)
    assert (row.tokens(), cache.used_bytes) == (0, 0)
    with pytest.raises(InvalidInput, match="cannot keep 1 of 0 tokens"):
        row.shorten(cache, 1)


def test_a_named_page_is_found_by_the_next_sequence(a_cache: NewCache) -> None:
    cache, row = a_cache(), SequenceCache(SHAPE)
    feed(row, cache, tensors(64))
    assert cache.find(b"n" * 32) is None
    cache.name(row.pages[0], root_hash=b"r" * 32, chain_hash=b"n" * 32)
    row.release(cache)
    found = cache.find(b"n" * 32)
    assert found is not None
    header = read_payload(cache.payload(found)).header
    assert (header.chain_hash, header.root_hash) == (b"n" * 32, b"r" * 32)
