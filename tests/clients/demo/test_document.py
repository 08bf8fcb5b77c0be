from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from packkv.demo.document import Document, prompts, python_reference, shared_length, text_file
from packkv.demo.model import load_tokenizer
from packkv.errors import ConfigError


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    return load_tokenizer(smollm2)


@pytest.mark.parametrize("wanted", [64, 100, 777, 2048])
def test_prompts_share_what_was_asked_for_and_hardly_more(tokenizer: Any, wanted: int) -> None:
    asked = prompts(tokenizer, python_reference(), wanted)
    assert wanted <= asked.shared < wanted + 16
    assert asked.first[: asked.shared] == asked.second[: asked.shared]
    assert asked.first[asked.shared] != asked.second[asked.shared]


def test_both_prompts_end_with_their_question(tokenizer: Any) -> None:
    document = python_reference()
    asked = prompts(tokenizer, document, 128)
    for ids, question in zip((asked.first, asked.second), document.questions, strict=True):
        assert question in tokenizer.decode(ids[-32:])


def test_a_tokenizer_without_a_template_gets_plain_text(smollm2: Path) -> None:
    tokenizer = load_tokenizer(smollm2)
    tokenizer.chat_template = None
    asked = prompts(tokenizer, Document("numbers", "one two three " * 100, ("Why?", "How?")), 64)
    assert asked.shared >= 64
    assert tokenizer.decode(asked.second).endswith("Question: How?\nAnswer:")


def test_a_short_text_is_refused_with_its_length(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("one two three")
    with pytest.raises(ConfigError, match=r"short\.txt has 3 tokens"):
        prompts(tokenizer, text_file(path), 64)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ConfigError, match="cannot read the text"):
        text_file(path)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 2], [3, 2], 0)],
)
def test_shared_length_ends_at_the_first_difference(
    first: list[int], second: list[int], shared: int
) -> None:
    assert shared_length(first, second) == shared
