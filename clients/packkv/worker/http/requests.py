"""What may be asked: the request bodies of the OpenAI API, as far as this worker does them.

What would change the answer and is not done here is refused, unless it says what happens anyway,
such as `n: 1`. What changes no answer, such as `user`, is taken and left alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20

# Fields that this worker does one way only: the values that ask for that way.
_ONLY: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}

Only = Annotated[Any, Field(default=None)]
Ignored = Annotated[Any, Field(default=None)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: Ignored


class Ask(_Strict):
    """What both kinds of completion have in common."""

    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: StopString | list[StopString] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = Field(default=None, max_length=1024)
    n: Only
    presence_penalty: Only
    frequency_penalty: Only
    logit_bias: Only
    user: Ignored
    metadata: Ignored
    store: Ignored
    service_tier: Ignored
    safety_identifier: Ignored
    prompt_cache_key: Ignored
    prompt_cache_retention: Ignored

    @field_validator(*_ONLY, check_fields=False)
    @classmethod
    def _is_done(cls, value: object, info: ValidationInfo) -> object:
        name = str(info.field_name)
        # as JSON has it, 1 and true are not the same
        same = (type(value) is type(one) and value == one for one in _ONLY[name])
        if value is None or any(same) or (type(value) is float and value in _ONLY[name]):
            return value
        only = " or ".join(repr(one) for one in _ONLY[name])
        raise PydanticCustomError(
            "unsupported", "this worker does {only} only", {"only": f"{name}={only}"}
        )

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: object) -> object:
        if isinstance(value, list) and len(value) > MAX_STOPS:
            raise PydanticCustomError(
                "too_many",
                "{found} stop strings; at most {most} are searched for",
                {"found": len(value), "most": MAX_STOPS},
            )
        return value

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Ask:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "no_stream", "stream_options is only for stream=true", {"param": "stream_options"}
            )
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a message about usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class TextAsk(Ask):
    """Body of POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    best_of: Only
    echo: Only
    suffix: Only


class TextPart(_Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


def _without_nulls(value: object) -> object:
    """Clients send messages back with every field they know, null where there is nothing."""
    if isinstance(value, dict):
        return {name: inner for name, inner in value.items() if inner is not None}
    return value


class ChatMessage(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: Ignored

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatAsk(Ask):
    """Body of POST /v1/chat/completions."""

    messages: list[Annotated[ChatMessage, BeforeValidator(_without_nulls)]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Only
    tool_choice: Only
    functions: Only
    function_call: Only
    response_format: Only
    modalities: Only
    parallel_tool_calls: Ignored
