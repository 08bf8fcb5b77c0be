"""What a worker refuses, and that it says why."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from openai import OpenAI

HI: Any = [{"role": "user", "content": "hi"}]

BAD_CHATS: list[tuple[dict[str, Any], str, str]] = [
    ({"n": 2}, "n", "n=1 only"),
    ({"temperature": 3}, "temperature", "less than or equal to 2"),
    ({"top_p": -1}, "top_p", "greater than or equal to 0"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "5 stop strings; at most 4"),
    ({"stop": ""}, "stop", "at least 1 character"),
    ({"seed": "x"}, "seed", "valid integer"),
    ({"presence_penalty": 1}, "presence_penalty", "presence_penalty=0 only"),
    ({"response_format": {"type": "json_object"}}, "response_format", "'text'"),
    ({"tools": [{"type": "function"}]}, "tools", "only"),
    ({"extra_body": {"top_k": 5}}, "top_k", "does not know the argument 'top_k'"),
    ({"top_logprobs": 2}, "top_logprobs", "needs logprobs=true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": [{"role": "pope", "content": "x"}]}, "messages.0.role", "'system'"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "cannot begin"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "messages.0.content",
        "",
    ),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream=true"),
    ({"extra_body": {"cache_salt": "x" * 1025}}, "cache_salt", "at most 1024"),
]


@pytest.mark.parametrize(("change", "param", "says"), BAD_CHATS)
def test_a_wrong_field_is_named(
    asked: OpenAI, change: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        asked.chat.completions.create(**{"model": "tiny", "messages": HI, **change})
    assert (refused.value.param or "").startswith(param)
    assert says in refused.value.message
    assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "the prompt is empty"),
        ([], "the prompt is empty"),
        (["a", "b"], "2 prompts in one request"),
        ([1, 260], "token id 260 in the prompt; the model knows 0 to 259"),
        ([-1], "token id -1"),
    ],
)
def test_a_prompt_that_is_none_is_refused(asked: OpenAI, prompt: Any, says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        asked.completions.create(model="tiny", prompt=prompt)


def test_a_context_that_is_too_short_is_named_with_what_was_asked(asked: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        asked.completions.create(model="tiny", prompt="x" * 16_000, max_tokens=500)
    assert refused.value.code == "context_length_exceeded"
    for number in ("16384", "16000", "500", "16500"):
        assert number in refused.value.message
    with pytest.raises(openai.BadRequestError, match="16385 together"):
        asked.completions.create(model="tiny", prompt="x" * 16_384, max_tokens=1)


def test_another_model_is_not_found(asked: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="serves 'tiny'") as refused:
        asked.completions.create(model="huge", prompt="x")
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="'huge' does not exist"):
        asked.models.retrieve("huge")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "/v1/completions", b"{", 400, "no JSON"),
        ("POST", "/v1/completions", b"[]", 400, "the body"),
        ("POST", "/v1/completions", b"\xff\xfe", 400, ""),
        ("POST", "/v1/nothing", b"{}", 404, "Not Found: POST /v1/nothing"),
        ("DELETE", "/v1/models", b"", 405, "Method Not Allowed"),
    ],
)
def test_what_is_no_request_gets_the_shape_of_an_error(
    first: Any, method: str, path: str, body: bytes, status: int, says: str
) -> None:
    connection = http.client.HTTPConnection(urlsplit(first.listening()).netloc, timeout=60)
    try:
        connection.request(method, path, body, {"content-type": "application/json"})
        reply = connection.getresponse()
        error = json.loads(reply.read())["error"]
    finally:
        connection.close()
    assert reply.status == status
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
