"""Which worker gets a request, by what each holds and has under way."""

from __future__ import annotations

import pytest

from packkv.client import Changes
from packkv.router import holdings as module
from packkv.router.choice import Choice
from packkv.router.config import Policy
from packkv.router.holdings import Holdings, Recent, short_names
from packkv.router.worker import ANSWER_BLOCKS, Worker
from tests.clients.router.conftest import names_of

PROMPT = short_names(names_of("one two three four five"))
OTHER = short_names(names_of("somebody else asks something"))


def workers(count: int = 3) -> list[Worker]:
    return [Worker(number, f"http://{number}", is_up=True) for number in range(count)]


def numbers(choice: Choice, among: list[Worker], names: list[int], times: int) -> list[int]:
    chosen = [choice.of(among, names) for _ in range(times)]
    return [one.number for one in chosen if one is not None]


@pytest.mark.parametrize("policy", Policy)
def test_without_anything_known_it_goes_in_turn(policy: Policy) -> None:
    assert numbers(Choice(policy), workers(), [], 6) == [0, 1, 2, 0, 1, 2]


def test_round_robin_looks_at_nothing_else() -> None:
    among = workers()
    among[0].recent.add(PROMPT)
    with among[1].carrying(PROMPT):
        assert numbers(Choice(Policy.ROUND_ROBIN), among, PROMPT, 3) == [0, 1, 2]


def test_the_longest_run_from_the_front_wins() -> None:
    among = workers()
    among[0].recent.add(PROMPT[:2])
    among[1].recent.add(PROMPT[:4])
    # all but the beginning is worth nothing
    among[2].recent.add(PROMPT[1:])
    assert [one.held(PROMPT) for one in among] == [2, 4, 0]
    assert numbers(Choice(Policy.PREFIX), among, PROMPT, 2) == [1, 1]


def test_what_is_under_way_is_weighed_against_what_is_held() -> None:
    among = workers(2)
    among[0].recent.add(PROMPT)
    choice = Choice(Policy.PREFIX)
    with among[0].carrying(PROMPT):
        assert choice.of(among, PROMPT) is among[0]
        with among[0].carrying(PROMPT):
            # two answers cost more than computing five blocks elsewhere
            assert choice.of(among, PROMPT) is among[1]
            with among[1].carrying(OTHER) as burden:
                assert choice.of(among, PROMPT) is among[0]
                assert among[1].load == ANSWER_BLOCKS + len(OTHER)
                burden.computed()
                assert among[1].load == ANSWER_BLOCKS
    assert [(one.load, one.under_way) for one in among] == [(0, 0), (0, 0)]


def test_one_that_is_down_or_was_tried_is_left_out() -> None:
    among = workers()
    among[0].recent.add(PROMPT)
    among[0].lose()
    choice = Choice(Policy.PREFIX)
    assert choice.of(among, PROMPT, tried=[among[1]]) is among[2]
    assert choice.of(among, PROMPT, tried=among) is None
    among[0].is_up = True
    # its memory may be another one's by now
    assert among[0].held(PROMPT) == 0


def test_among_workers_of_one_store_the_one_that_had_it_wins(store_of_prompt: Holdings) -> None:
    among = workers()
    for one in among:
        one.holdings = store_of_prompt
    among[2].recent.add(PROMPT)
    assert [one.held(PROMPT) for one in among] == [5, 5, 5]
    assert numbers(Choice(Policy.PREFIX), among, PROMPT, 2) == [2, 2]


@pytest.fixture
def store_of_prompt(monkeypatch: pytest.MonkeyPatch) -> Holdings:
    """What a store that cannot be reached said before."""
    from packkv.client import ClientConfig

    made = Holdings("127.0.0.1:1", ClientConfig())
    made._take(changes(stored=names_of("one two three four five")))
    return made


def changes(stored: list[bytes], removed: tuple[bytes, ...] = (), reset: bool = False) -> Changes:
    return Changes(1, frozenset(stored), frozenset(removed), reset, False)


def test_a_reset_forgets_and_more_than_there_is_room_for_is_left_out(
    store_of_prompt: Holdings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store_of_prompt.run(PROMPT) == 5
    store_of_prompt._take(changes([], reset=True))
    assert store_of_prompt.run(PROMPT) == 0
    monkeypatch.setattr(module, "MAX_FOLLOWED", 3)
    store_of_prompt._take(changes(names_of("one two three four five")))
    assert len(store_of_prompt) == 3


def test_what_was_sent_is_forgotten_from_its_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECENT", 7)
    recent = Recent()
    recent.add(PROMPT)
    recent.add(OTHER)
    assert recent.run(OTHER) == 4
    assert recent.run(PROMPT) == 3
