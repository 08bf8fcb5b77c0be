"""Answers of real workers to the real client of the OpenAI API."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from openai.types import Completion
from transformers import AutoModelForCausalLM, AutoTokenizer

from packkv.client import Client
from packkv.demo.processes import StoreProcess

Wait = Callable[[Callable[[], object]], None]

SETTINGS: dict[str, Any] = {"model": "tiny", "max_tokens": 40, "temperature": 1, "seed": 7}


def prompt(topic: str, length: int = 300) -> str:
    return (f"all about {topic}. " * length)[:length]


@pytest.fixture(scope="session")
def exact(tiny_model: Path) -> Callable[[str, int], tuple[str, list[float]]]:
    """Text and log-probabilities of a greedy answer of stock transformers, without any cache."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def answer(text: str, new_tokens: int) -> tuple[str, list[float]]:
        ids = tokenizer(text).input_ids
        chosen: list[int] = []
        values: list[float] = []
        with torch.inference_mode():
            for _ in range(new_tokens):
                logits = model(torch.tensor([ids + chosen]), use_cache=False).logits[0, -1]
                chosen.append(int(logits.argmax()))
                values.append(float(logits.log_softmax(0).max()))
        return tokenizer.decode(chosen), values

    return answer


def values_of(completion: Completion) -> list[float]:
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    return list(logprobs.token_logprobs)


def cached_tokens(completion: Completion) -> int:
    assert completion.usage is not None
    assert completion.usage.prompt_tokens_details is not None
    return completion.usage.prompt_tokens_details.cached_tokens or 0


def test_the_model_is_listed_and_found(asked: OpenAI) -> None:
    assert [model.id for model in asked.models.list()] == ["tiny"]
    assert asked.models.retrieve("tiny").owned_by == "packkv"


def test_a_streamed_completion_is_the_whole_one(asked: OpenAI) -> None:
    whole = asked.completions.create(prompt="once", **SETTINGS)
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (4, 40)
    assert whole.usage.total_tokens == 44
    assert whole.choices[0].finish_reason == "length"
    parts = list(
        asked.completions.create(
            prompt="once", stream=True, stream_options={"include_usage": True}, **SETTINGS
        )
    )
    *texts, last, usage = parts
    assert len(texts) > 5
    assert "".join(part.choices[0].text for part in parts[:-1]) == whole.choices[0].text
    assert [part.choices[0].finish_reason for part in texts] == [None] * len(texts)
    assert last.choices[0].finish_reason == "length"
    assert usage.choices == []
    assert usage.usage == whole.usage
    assert all(part.usage is None for part in parts[:-1])


def test_a_streamed_conversation_is_the_whole_one(asked: OpenAI) -> None:
    messages: Any = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "on"}, {"type": "text", "text": "e"}],
        },
    ]
    settings = {**SETTINGS, "max_completion_tokens": 30}
    whole = asked.chat.completions.create(messages=messages, **settings)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 30
    assert whole.choices[0].message.role == "assistant"
    parts = list(asked.chat.completions.create(messages=messages, stream=True, **settings))
    assert parts[0].choices[0].delta.role == "assistant"
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == whole.choices[0].message.content
    assert [part.choices[0].finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1].choices[0].finish_reason == "length"
    assert len({part.id for part in parts}) == 1


def test_parts_and_names_make_the_same_prompt(asked: OpenAI) -> None:
    plain: Any = [{"role": "system", "content": "s"}, {"role": "user", "content": "one"}]
    parts: Any = [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "one"}], "name": "ann"},
    ]
    answers = [
        asked.chat.completions.create(messages=messages, **SETTINGS).choices[0].message.content
        for messages in (plain, parts)
    ]
    assert answers[0] == answers[1]


def test_token_ids_are_a_prompt_too(asked: OpenAI) -> None:
    greedy = {**SETTINGS, "temperature": 0}
    texts = asked.completions.create(prompt=["ab"], **greedy)
    assert texts.usage is not None
    assert texts.usage.prompt_tokens == 2
    alphabet = sorted(range(256))  # any two ids will do
    ids = asked.completions.create(prompt=[alphabet[64:66]], **greedy)
    assert ids.usage is not None
    assert ids.usage.prompt_tokens == 2


def test_a_prefix_of_one_worker_is_not_computed_by_another(
    workers: Any,
    worker_store: StoreProcess,
    exact: Callable[[str, int], tuple[str, list[float]]],
    eventually: Wait,
) -> None:
    shared = prompt("lighthouses")
    settings = {**SETTINGS, "temperature": 0, "logprobs": 0}
    first, second = workers["first"].ready(), workers["second"].ready()
    with first.client() as client:
        cold = client.completions.create(prompt=shared + " why?", **settings)
    assert cached_tokens(cold) == 0
    with Client(worker_store.address) as store:
        eventually(lambda: store.stats().blocks >= 4)
    with second.client() as client:
        warm = client.completions.create(prompt=shared + " when?", **settings)
        again = client.completions.create(prompt=shared + " when?", **settings)
    # 300 characters are 300 tokens, of which 4 blocks of 64
    assert cached_tokens(warm) == 256
    # by now in this worker's own pages
    assert cached_tokens(again) == 256
    for text, found in ((" why?", cold), (" when?", warm), (" when?", again)):
        wanted = exact(shared + text, 40)
        assert found.choices[0].text == wanted[0]
        assert values_of(found) == pytest.approx(wanted[1], abs=1e-3)
    assert second.metric("store_hit_tokens_total") == 256
    assert second.metric("cached_tokens_total") == 512


def test_salts_share_with_their_like_only(workers: Any, eventually: Wait) -> None:
    first, second = workers["first"].ready(), workers["second"].ready()

    def cached(worker: Any, salt: str | None, topic: str = "salt mines") -> int:
        extra = {} if salt is None else {"cache_salt": salt}
        with worker.client() as client:
            return cached_tokens(
                client.completions.create(prompt=prompt(topic), extra_body=extra, **SETTINGS)
            )

    def reaches_the_other_worker(topic: str) -> bool:
        before = first.metric("store_published_blocks_total")
        assert cached(first, "ann", topic) == 0
        eventually(lambda: first.metric("store_published_blocks_total") >= before + 4)
        assert cached(second, "eve", topic) == 0
        return cached(second, "ann", topic) == 256

    assert cached(first, "ann") == 0
    assert cached(first, "ann") == 256
    assert cached(first, "bob") == 0
    assert cached(first, None) == 0
    assert cached(first, "") == 256
    # a load that is not done at once ends, because so small a model computes so quickly
    topics = ("salt lakes", "salt pans", "salt flats", "salt marshes", "salt domes")
    assert any(map(reaches_the_other_worker, topics))


def test_answers_at_one_time_are_those_of_one_after_the_other(asked: OpenAI) -> None:
    # of different lengths, so that the rows of a step are ragged; two of them share a prefix
    asks = [prompt("rivers", 90), prompt("rivers", 200), prompt("owls", 10), prompt("tea", 130)]

    def answer(number: int) -> str:
        settings = {**SETTINGS, "seed": number, "max_tokens": 100, "temperature": 0.7}
        found: Completion = asked.completions.create(prompt=asks[number], **settings)
        return found.choices[0].text

    alone = [answer(number) for number in range(len(asks))]
    with ThreadPoolExecutor(len(asks)) as pool:
        assert list(pool.map(answer, range(len(asks)))) == alone


def test_an_answer_ends_before_a_stop_string_that_crosses_tokens(asked: OpenAI) -> None:
    settings = {**SETTINGS, "max_tokens": 150}
    whole = asked.completions.create(prompt="once", **settings).choices[0].text
    # one character is one token here
    stop = re.findall("[ -~]{3}", whole)[-1]
    for asked_for in (stop, ["never comes", stop]):
        found = asked.completions.create(prompt="once", stop=asked_for, **settings)
        assert found.choices[0].text == whole[: whole.index(stop)]
        assert found.choices[0].finish_reason == "stop"
        assert found.usage is not None
        assert found.usage.completion_tokens < 150
    parts = asked.completions.create(prompt="once", stop=stop, stream=True, **settings)
    assert "".join(part.choices[0].text for part in parts) == whole[: whole.index(stop)]


def test_seeds_repeat_an_answer_and_its_absence_does_not(asked: OpenAI) -> None:
    settings = {name: value for name, value in SETTINGS.items() if name != "seed"}

    def text(**seed: int) -> str:
        found: Completion = asked.completions.create(prompt="once", **(settings | seed))
        return found.choices[0].text

    assert text(seed=1) == text(seed=1)
    assert text(seed=1) != text(seed=2)
    assert text() != text()


def test_log_probabilities_name_the_tokens(asked: OpenAI) -> None:
    settings: Any = {**SETTINGS, "temperature": 0, "max_tokens": 5}
    found = asked.chat.completions.create(
        messages=[{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=2, **settings
    )
    assert found.choices[0].logprobs is not None
    content = found.choices[0].logprobs.content
    assert content is not None
    assert len(content) == 5
    for token in content:
        # greedy: the most likely is the chosen one
        assert token.top_logprobs[0].token == token.token
        assert token.logprob == token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob


def test_fields_that_change_nothing_are_taken(asked: OpenAI) -> None:
    asked.chat.completions.create(
        messages=[{"role": "user", "content": "hi"}],
        n=1,
        presence_penalty=0,
        frequency_penalty=0.0,
        user="ann",
        response_format={"type": "text"},
        tool_choice="none",
        **SETTINGS,
    )
