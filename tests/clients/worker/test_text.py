"""Text that grows token by token is the text of all tokens, and ends where it should."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from packkv.worker.model import Language
from packkv.worker.text import Detokenizer, StopStrings


@pytest.fixture(scope="session")
def language(smollm2: Path) -> Language:
    return Language(AutoTokenizer.from_pretrained(smollm2, local_files_only=True), 49_152)


def grown(decode: Callable[[Sequence[int]], str], ids: list[int], prompt: list[int]) -> list[str]:
    detokenizer = Detokenizer(decode, prompt)
    return [*(detokenizer.feed(token_id) for token_id in ids), detokenizer.finish()]


@given(text=st.text(max_size=60), prompt=st.text(max_size=10))
def test_pieces_make_the_text_of_all_tokens(language: Language, text: str, prompt: str) -> None:
    ids = language.prompt(text)
    pieces = grown(language.decode, ids, language.prompt(prompt))
    # which is the text itself where the model has tokens for all of it
    assert "".join(pieces) == language.decode(ids)


@given(ids=st.lists(st.integers(0, 49_151), max_size=60))
def test_any_tokens_at_all_make_the_same_text_as_at_once(
    language: Language, ids: list[int]
) -> None:
    assert "".join(grown(language.decode, ids, [])) == language.decode(ids)


def test_no_piece_ends_in_half_a_character(language: Language) -> None:
    text = "naïve 日本語 🦙🌟 ☃ end"
    ids = language.prompt(text)
    # several tokens for one character: otherwise this shows nothing
    assert any("\ufffd" in language.decode([token_id]) for token_id in ids)
    pieces = grown(language.decode, ids, [])
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_what_stays_half_a_character_is_handed_out_at_the_end(language: Language) -> None:
    ids = language.prompt("x🦙")[:-1]
    assert "".join(grown(language.decode, ids, [])).startswith("x\ufffd")


def test_a_tokenizer_that_drops_the_first_space_keeps_it_after_a_prompt() -> None:
    # as sentencepiece does
    words = {1: "▁once", 2: "▁upon", 3: "▁a"}

    def decode(ids: Sequence[int]) -> str:
        return "".join(words[token_id] for token_id in ids).replace("▁", " ").removeprefix(" ")

    assert grown(decode, [2, 3], [1]) == [" upon", " a", ""]
    assert grown(decode, [1, 2], []) == ["once", " upon", ""]


STOP = st.text("abc", min_size=1, max_size=4)


@given(pieces=st.lists(st.text("abc", max_size=4), max_size=12), stops=st.lists(STOP, max_size=3))
def test_text_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    search = StopStrings(stops)
    found = ""
    for piece in pieces:
        found += search.feed(piece)
        if search.stopped:
            break
    found += search.finish()
    text = "".join(pieces)
    # a stop string is noticed as soon as its last character is there
    ends = [place + len(stop) for stop in stops if (place := text.find(stop)) >= 0]
    assert search.stopped == bool(ends)
    assert text.startswith(found)
    assert not any(stop in found for stop in stops)
    if not ends:
        assert found == text


def test_text_is_held_back_no_longer_than_needed() -> None:
    search = StopStrings(["\n\nQ:"])
    assert search.feed("one\n") == "one"
    assert search.feed("two\n\n") == "\ntwo"
    assert search.feed("Q") == ""
    assert search.feed("uestion") == "\n\nQuestion"
    assert search.feed("\n\nQ: more") == ""
    assert search.stopped
    assert search.feed("ignored") == search.finish() == ""


def test_a_token_alone_has_its_name(language: Language) -> None:
    assert json.dumps(language.token(2)) == '"<|im_end|>"'
    assert language.decode([2]) == ""
