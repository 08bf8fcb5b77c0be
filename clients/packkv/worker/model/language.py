"""The tokenizer of a model: prompts and conversations → token ids, token ids → text."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from packkv.serving.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str


class Language:
    """A tokenizer that several threads may use."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
        """
        Args:
            tokenizer: of the model.
            vocabulary: token ids that the model knows, from 0 on.
        """
        self._tokenizer = tokenizer
        self.vocabulary = vocabulary
        # encoding sets padding and truncation inside the tokenizer, and refuses while another does
        self._lock = threading.Lock()

    def prompt(self, text: str) -> list[int]:
        """Token ids of a text, with what the model wants at the start of one."""
        with self._lock:
            ids: list[int] = self._tokenizer(text).input_ids
        return ids

    def conversation(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the assistant's next message begins.

        Raises:
            BadRequest: the model has no chat template, or its template refuses these messages.
        """
        if not self._tokenizer.chat_template:
            raise BadRequest(
                "this model has no chat template: use /v1/completions", param="messages"
            )
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            with self._lock:
                text = self._tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=True
                )
                # the template wrote all special tokens that there are
                ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        except TemplateError as error:
            raise BadRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special ones left out; U+FFFD for bytes that are no character."""
        text = self._tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def token(self, token_id: int) -> str:
        """The text of one token alone, special ones by their name."""
        return str(self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
