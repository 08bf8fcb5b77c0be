"""A model that begins before its prefix is here: the same tokens, or `PrefixLost` and no token."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from transformers import PreTrainedModel

from packkv.client import Arrived, Client, ClientConfig
from packkv.errors import PrefixLost
from packkv.integrations.hf import JoinedCache, PackedKVCache, PackKV, PackKVConfig
from packkv.prefix_cache import PrefixCacheConfig
from packkv.worker.model.packed import PackedDecoder
from tests.clients.conftest import StoreProcess
from tests.clients.integrations.test_hf import exact_greedy, llama, tokens

LAYERS = 3
IDS = tokens(300, seed=77)
WAIT_S = 60.0
LAYERED = PrefixCacheConfig(deadline_s=WAIT_S, group_bytes=1, probe_bytes=1)


class Wire(Client):
    """A client by whose hands every layer passes: `on_layer` sees it before the prefix does."""

    on_layer: Callable[[int], object] | None = None

    def get(self, *arguments: Any, **options: Any) -> Any:
        hand_on = options.get("on_layers")
        if hand_on is not None and self.on_layer is not None:
            options["on_layers"] = Counting(hand_on, self.on_layer)
        return super().get(*arguments, **options)


class Counting:
    """Numbers the parts: 0 has the heads, 1 the first layer, and so on."""

    def __init__(self, hand_on: Callable[[Arrived], None], on_layer: Callable[[int], object]):
        self._hand_on = hand_on
        self._on_layer = on_layer
        self._number = 0

    def __call__(self, arrived: Arrived) -> None:
        self._on_layer(self._number)
        self._number += 1
        self._hand_on(arrived)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return llama()


@pytest.fixture(scope="module")
def wanted(model: PreTrainedModel) -> list[list[int]]:
    answer: list[list[int]] = exact_greedy(model, IDS).tolist()
    return answer


@pytest.fixture
def wire(store: StoreProcess) -> Iterator[Wire]:
    # group by group, as from another host
    with Wire(store.target, config=ClientConfig(paths=("bulk",))) as wire:
        yield wire


@contextmanager
def reader(
    model: PreTrainedModel,
    wire: Wire,
    prefix: PrefixCacheConfig = LAYERED,
    codec: str = "raw",
) -> Iterator[PackKV]:
    """A connector that has published the blocks of IDS, knows how fast they come, and has none."""
    settings = PackKVConfig(codec=codec, weights_digest="w1", calibration_tokens=128, prefix=prefix)
    with PackKV(model, wire, settings) as packkv:
        packkv.generate(model, IDS, max_new_tokens=2, do_sample=False)
        assert packkv.flush(WAIT_S)
        packkv.forget_pages()
        # so small a model computes faster than anything can be fetched
        assert packkv._prefix_cache is not None
        packkv._prefix_cache.observe_prefill(64, 1000.0)
        cache = packkv.new_cache(IDS)
        assert cache.matched_tokens == [256]
        cache.release()
        packkv.forget_pages()
        yield packkv


def greedy(model: PreTrainedModel, cache: PackedKVCache) -> list[list[int]]:
    found: list[list[int]] = model.generate(
        IDS, past_key_values=cache, max_new_tokens=12, do_sample=False
    ).tolist()
    return found


class Held:
    """Lets so many parts pass and holds the next until it may go on."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.is_held = threading.Event()
        self.may_go_on = threading.Event()

    def __call__(self, number: int) -> None:
        if number == self._at:
            self.is_held.set()
            assert self.may_go_on.wait(WAIT_S)


def test_the_first_layer_computes_while_the_last_is_on_its_way(
    model: PreTrainedModel, wire: Wire, wanted: list[list[int]]
) -> None:
    # parts: the heads, and three layers
    held = Held(at=LAYERS)
    begun = threading.Event()
    hook = model.model.layers[0].mlp.register_forward_hook(lambda *_: begun.set())
    with reader(model, wire) as packkv:
        wire.on_layer = held
        begun.clear()
        cache = packkv.new_cache(IDS, layerwise=True)
        assert cache.matched_tokens == [256]
        assert cache.is_arriving
        found: list[list[list[int]]] = []
        running = threading.Thread(target=lambda: found.append(greedy(model, cache)))
        running.start()
        # attention of the first layer is over, and the last layer has not been handed on
        assert begun.wait(WAIT_S)
        assert held.is_held.wait(WAIT_S)
        assert running.is_alive()
        held.may_go_on.set()
        running.join(WAIT_S)
        assert found == [wanted]
        assert not cache.is_arriving
        # that of the first time, before anything was published
        assert packkv.counters.misses == {"absent": 1}
        # a page that came whole is like any other: the next request finds it here
        packkv.publish(cache)
        cache.release()
        loads = packkv.counters.loads
        assert packkv.new_cache(IDS, layerwise=True).matched_tokens == [256]
        assert packkv.counters.loads == loads
    hook.remove()


@pytest.mark.usefixtures("compiled_cold")
def test_layers_come_in_cold_form_as_well(model: PreTrainedModel, wire: Wire) -> None:
    cold = PrefixCacheConfig(deadline_s=WAIT_S, group_bytes=1, probe_bytes=1, cold="always")
    with reader(model, wire, cold, codec="hybrid:delta=0.1,v_levels=16") as packkv:
        whole = packkv.new_cache(IDS)
        answer = greedy(model, whole)
        whole.release()
        packkv.forget_pages()
        cache = packkv.new_cache(IDS, layerwise=True)
        assert cache.is_arriving
        assert greedy(model, cache) == answer
        assert packkv.counters.published_cold == 4
        assert packkv.counters.misses == {}


def test_waiting_for_layers_is_not_taken_for_computing(model: PreTrainedModel, wire: Wire) -> None:
    with reader(model, wire) as packkv:
        seen: list[float] = []
        packkv._observe_prefill = lambda tokens, seconds: seen.append(seconds)  # type: ignore[method-assign]
        held = Held(at=LAYERS)
        wire.on_layer = held
        cache = packkv.new_cache(IDS, layerwise=True)
        waited: list[float] = []
        settle = cache._settle

        def timed(layer: int) -> None:
            if layer == LAYERS - 1:
                threading.Timer(0.5, held.may_go_on.set).start()
            settle(layer)
            waited.append(cache._waited_s)

        cache._settle = timed  # type: ignore[method-assign]
        model(IDS[:, 256:], past_key_values=cache)
        assert waited[-1] > 0.3
        assert seen
        assert seen[0] < 0.3 + waited[-1]
        cache.release()


@pytest.mark.parametrize("lost_at", range(1, LAYERS + 1))
def test_a_loss_in_the_middle_is_raised_and_what_is_computed_anew_is_right(
    model: PreTrainedModel, wire: Wire, wanted: list[list[int]], lost_at: int
) -> None:
    with reader(model, wire) as packkv:
        held = Held(at=lost_at)

        def break_off(number: int) -> None:
            held(number)
            if number == lost_at:
                raise ConnectionResetError("by the test")

        wire.on_layer = break_off
        cache = packkv.new_cache(IDS, layerwise=True)
        assert cache.is_arriving
        held.may_go_on.set()
        with pytest.raises(PrefixLost):
            greedy(model, cache)
        # nothing of it can be used or shared
        assert packkv.publish(cache) == 0
        with pytest.raises(PrefixLost):
            model(IDS[:, 256:], past_key_values=cache)
        with pytest.raises(ValueError, match="still arriving"):
            JoinedCache([cache])
        cache.release()
        again = packkv.new_cache(IDS, fetch=False)
        assert again.matched_tokens == [0]
        assert greedy(model, again) == wanted
        again.release()
        packkv.forget_pages()
        assert packkv._paged is not None
        assert packkv._paged.used_bytes == 0
        # and the store is asked again
        wire.on_layer = None
        assert packkv.new_cache(IDS).matched_tokens == [256]


def test_a_caller_that_did_not_ask_for_it_never_sees_a_loss(
    model: PreTrainedModel, wire: Wire, wanted: list[list[int]]
) -> None:
    def break_off(number: int) -> None:
        raise ConnectionResetError("by the test")

    with reader(model, wire) as packkv:
        wire.on_layer = break_off
        cache = packkv.new_cache(IDS)
        assert not cache.is_arriving
        assert greedy(model, cache) == wanted


def test_a_cache_can_be_repeated_cut_or_given_up_while_its_prefix_arrives(
    model: PreTrainedModel, wire: Wire, wanted: list[list[int]]
) -> None:
    with reader(model, wire) as packkv:
        # repeated for beams
        beams = {"max_new_tokens": 12, "num_beams": 2, "do_sample": False}
        cache = packkv.new_cache(IDS, fetch=False)
        exact = model.generate(IDS, past_key_values=cache, **beams).tolist()
        cache.release()
        cache = packkv.new_cache(IDS, layerwise=True)
        assert cache.is_arriving
        assert model.generate(IDS, past_key_values=cache, **beams).tolist() == exact
        cache.release()
        packkv.forget_pages()
        # cut inside a page that has not come yet: waits for it
        cache = packkv.new_cache(IDS, layerwise=True)
        cache.crop(-100)
        assert not cache.is_arriving
        assert greedy(model, cache) == wanted
        cache.release()
        packkv.forget_pages()
        # given up before anything was computed
        cache = packkv.new_cache(IDS, layerwise=True)
        cache.release()
        assert packkv._paged is not None
        assert packkv._paged.used_bytes == 0
        assert greedy(model, packkv.new_cache(IDS)) == wanted


def test_a_batch_is_loaded_whole(model: PreTrainedModel, wire: Wire) -> None:
    with reader(model, wire) as packkv:
        cache = packkv.new_cache(IDS.repeat(2, 1), layerwise=True)
        assert (cache.matched_tokens, cache.is_arriving) == ([256, 256], False)


def test_pages_that_have_no_room_are_computed(
    model: PreTrainedModel, wire: Wire, wanted: list[list[int]]
) -> None:
    with reader(model, wire) as packkv:
        cache = packkv.new_cache(IDS)
        page = 4 * cache.rows[0].pages[0].place.words
        cache.release()
    settings = PackKVConfig(
        codec="raw", weights_digest="w1", prefix=LAYERED, cache_bytes=2 * page + page // 2
    )
    with PackKV(model, wire, settings) as packkv:
        packkv.new_cache(IDS).release()
        packkv.forget_pages()
        cache = packkv.new_cache(IDS, layerwise=True)
        assert cache.matched_tokens == [128]
        assert greedy(model, cache) == wanted


@pytest.mark.parametrize("lost_at", [None, 1, LAYERS])
def test_a_worker_computes_what_it_has_lost(
    model: PreTrainedModel, wire: Wire, wanted: list[list[int]], lost_at: int | None
) -> None:
    held = Held(at=lost_at or 1)

    def break_off(number: int) -> None:
        held(number)
        if number == lost_at:
            raise ConnectionResetError("by the test")

    with reader(model, wire) as packkv:
        wire.on_layer = break_off
        decoder = PackedDecoder(model, packkv)
        prompt = IDS[0].tolist()
        sequence = decoder.begin(prompt, "")
        assert sequence.cached_tokens == 256
        held.may_go_on.set()
        logits = decoder.prefill(sequence)
        answer = []
        for _ in range(12):
            answer.append(int(logits.argmax()))
            logits = decoder.step([sequence], [answer[-1]])[0]
        assert prompt + answer == wanted[0]
        assert sequence.cached_tokens == (256 if lost_at is None else 0)
        decoder.end(sequence)
