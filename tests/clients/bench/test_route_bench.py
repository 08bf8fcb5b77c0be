"""The trace of `packkv bench route`; tests/clients/worker/test_routing.py measures with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from packkv.bench.route.plan import Plan
from packkv.bench.route.trace import Trace
from packkv.errors import ConfigError

PLAN = Plan(
    workers=2,
    conversations=4,
    turns=3,
    document_tokens=64,
    answer_tokens=8,
    at_once=2,
    seed=5,
)
TEXT = "".join(chr(0x100 + number) * 256 for number in range(4))


def order(plan: Plan) -> list[int]:
    trace, asked = Trace(plan, TEXT), []
    while (conversation := trace.next()) is not None:
        conversation.ask()
        asked.append(conversation.number)
        trace.give_back(conversation)
    return asked


def test_every_conversation_asks_all_of_its_questions_and_chance_is_a_seed() -> None:
    assert sorted(order(PLAN)) == sorted([0, 1, 2, 3] * 3)
    assert order(PLAN) == order(PLAN)
    assert order(PLAN) != order(replace(PLAN, seed=6))


def test_a_question_has_all_that_was_said_before_it_and_its_own_document() -> None:
    trace = Trace(PLAN, TEXT)
    first = trace.next()
    assert first is not None
    (question,) = first.ask()
    assert question["content"].startswith(TEXT[256 * first.number : 256 * (first.number + 1)])
    first.hear("so")
    trace.give_back(first)
    assert [message["role"] for message in first.ask()] == ["user", "assistant", "user"]


def test_who_waits_for_an_answer_is_not_asked_for_a_question() -> None:
    trace = Trace(PLAN, TEXT)
    waiting = [trace.next() for _ in range(4)]
    assert len({one.number for one in waiting if one is not None}) == 4
    assert trace.next() is None


@pytest.mark.parametrize(
    "field", [{"workers": 1}, {"turns": 1}, {"at_once": 0}, {"document_tokens": 10**9}]
)
def test_a_plan_beyond_its_limits_is_refused(field: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(field.values()))} is not between"):
        replace(PLAN, **field)


def test_a_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(ConfigError, match="too short for 4 documents"):
        Trace(PLAN, TEXT[:-1])
