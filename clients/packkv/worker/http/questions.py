"""A request of the API → a task for the engine."""

from __future__ import annotations

from packkv.serving.errors import BadRequest, NotFound
from packkv.worker.engine import Task
from packkv.worker.http.requests import Ask, ChatAsk, TextAsk
from packkv.worker.model import Message, OpenModel
from packkv.worker.sampling import Sampling

# The API's default of /v1/completions. A conversation's answer may fill the context.
_TEXT_TOKENS = 16


def check_model(asked: str, model: OpenModel) -> None:
    """Refuse what was meant for another model.

    Raises:
        NotFound: this worker serves another one.
    """
    if asked != model.name:
        raise NotFound(
            f"the model {asked!r} does not exist; this worker serves {model.name!r}",
            param="model",
            code="model_not_found",
        )


def text_task(ask: TextAsk, model: OpenModel) -> Task:
    """The task of a /v1/completions request.

    Raises:
        BadRequest: it has no prompt, several, or one that does not fit.
    """
    prompt = _one_prompt(ask, model)
    wanted = _TEXT_TOKENS if ask.max_tokens is None else ask.max_tokens
    return _task(ask, model, prompt, wanted, ask.logprobs, "prompt")


def chat_task(ask: ChatAsk, model: OpenModel) -> Task:
    """The task of a /v1/chat/completions request.

    Raises:
        BadRequest: the conversation has no place in the model's template or context.
    """
    # the newer name of what templates know as the system's word
    roles = {"developer": "system"}
    messages = [Message(roles.get(one.role, one.role), one.text) for one in ask.messages]
    prompt = model.language.conversation(messages)
    if ask.top_logprobs is not None and not ask.logprobs:
        raise BadRequest("top_logprobs needs logprobs=true", param="top_logprobs")
    top = (ask.top_logprobs or 0) if ask.logprobs else None
    wanted = ask.max_tokens if ask.max_completion_tokens is None else ask.max_completion_tokens
    return _task(ask, model, prompt, wanted, top, "messages")


def _one_prompt(ask: TextAsk, model: OpenModel) -> list[int]:
    prompt = ask.prompt
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise BadRequest(
                f"{len(prompt)} prompts in one request; this worker takes one", param="prompt"
            )
        prompt = prompt[0]
    if isinstance(prompt, str):
        return model.language.prompt(prompt)
    ids = [token for token in prompt if isinstance(token, int)]
    wrong = next((token for token in ids if not 0 <= token < model.language.vocabulary), None)
    if wrong is not None:
        raise BadRequest(
            f"token id {wrong} in the prompt; the model knows 0 to {model.language.vocabulary - 1}",
            param="prompt",
        )
    return ids


def _task(
    ask: Ask, model: OpenModel, prompt: list[int], wanted: int | None, top: int | None, param: str
) -> Task:
    if not prompt:
        raise BadRequest("the prompt is empty: it has no token", param=param)
    room = model.max_context - len(prompt)
    # an answer has at least one token
    if room < (wanted or 1):
        asked = f" and {wanted} of the answer" if wanted else ""
        raise BadRequest(
            f"This model's maximum context length is {model.max_context} tokens. However, you "
            f"requested {len(prompt)} tokens of {param}{asked}, {len(prompt) + (wanted or 1)} "
            "together. Please reduce one of them.",
            param=param,
            code="context_length_exceeded",
        )
    sampling = Sampling(
        temperature=1.0 if ask.temperature is None else ask.temperature,
        top_p=1.0 if ask.top_p is None else ask.top_p,
        seed=ask.seed,
        top_logprobs=top,
    )
    return Task(prompt, wanted or room, sampling, ask.stops, ask.cache_salt or "")
