"""Prompts as token ids: [SOS] [X] * M [name.] [EOS], never cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedapt.core.errors import DataError, ModelNotSupported
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.tokens import (
    Layout,
    PromptTokenizer,
    to_prompt_tokenizer,
    tokenize_prompts,
    tokenize_texts,
)

SOS, EOS, X, FULL_STOP = 49406, 49407, 343, 269


@pytest.fixture(scope="module")
def theirs() -> Any:
    return import_open_clip().SimpleTokenizer()


@pytest.fixture(scope="module")
def tokenizer(theirs: Any) -> PromptTokenizer:
    return to_prompt_tokenizer(theirs, "a model")


def test_the_layout(tokenizer: PromptTokenizer) -> None:
    tokens = tokenize_prompts(tokenizer, ("mug", "red square"), 3, Layout(77))
    ((mug,), (red,), (square,)) = (tokenizer.encode(word) for word in ("mug", "red", "square"))
    assert tokens.ids.tolist() == [
        [SOS, X, X, X, mug, FULL_STOP, EOS, 0],
        [SOS, X, X, X, red, square, FULL_STOP, EOS],
    ]
    assert tokens.pooled.tolist() == [6, 7]
    assert tokens.context_length == 3
    assert tokens.ids.dtype == tokens.pooled.dtype == torch.int64


def test_the_ids_are_open_clips_own(tokenizer: PromptTokenizer, theirs: Any) -> None:
    names = ("mug", "back pack", "Hängematte, grün", "x")
    tokens = tokenize_prompts(tokenizer, names, 4, Layout(77))
    expected = theirs([f"X X X X {name}." for name in names])
    length = tokens.ids.shape[1]
    assert torch.equal(tokens.ids, expected[:, :length])
    assert int(expected[:, length:].abs().sum()) == 0
    assert torch.equal(tokens.pooled, expected.argmax(-1))


def test_a_prompt_that_just_fits_is_taken_and_one_more_token_refused(
    tokenizer: PromptTokenizer,
) -> None:
    # SOS, 71 context tokens, red, square, full stop, EOS
    assert tokenize_prompts(tokenizer, ("red square",), 71, Layout(76)).ids.shape == (1, 76)
    with pytest.raises(
        DataError,
        match=r"class 'red square': found a prompt of 77 tokens; expected at most 76, "
        r"with 72 context tokens\. To do: shorten the class name, or set",
    ):
        tokenize_prompts(tokenizer, ("mug", "red square"), 72, Layout(76))


def test_texts_have_no_context(tokenizer: PromptTokenizer, theirs: Any) -> None:
    texts = ("a photo of a mug.", "a mug")
    tokens = tokenize_texts(tokenizer, texts, Layout(77))
    expected = theirs(list(texts))
    assert torch.equal(tokens.ids, expected[:, :8])
    assert tokens.pooled.tolist() == [7, 3]
    assert tokens.context_length == 0


def test_a_text_that_is_too_long_is_refused(tokenizer: PromptTokenizer) -> None:
    long = "mug " * 76
    with pytest.raises(DataError, match="found a prompt of 78 tokens; expected at most 77, with 0"):
        tokenize_texts(tokenizer, (long,), Layout(77))
    assert tokenize_texts(tokenizer, (long[:-4],), Layout(77)).ids.shape == (1, 77)


# how other towers read a row


def test_a_tower_that_sees_padding_gets_whole_rows(tokenizer: PromptTokenizer) -> None:
    tokens = tokenize_prompts(tokenizer, ("mug", "red square"), 2, Layout(12, whole=True))
    assert tokens.ids.shape == (2, 12)
    assert tokens.pooled.tolist() == [5, 6]
    assert tokens.ids[0, 6:].tolist() == [0] * 6
    last = tokenize_prompts(tokenizer, ("mug",), 2, Layout(12, whole=True, pooled="last"))
    assert last.pooled.tolist() == [11]


def test_a_token_of_padding_is_added_where_there_is_room(tokenizer: PromptTokenizer) -> None:
    texts = ("a mug", "a red mug")
    with_room = tokenize_texts(tokenizer, texts, Layout(77, seen_padding=1))
    assert with_room.ids.shape == (2, 6)
    assert with_room.pooled.tolist() == [3, 4]
    full = tokenize_texts(tokenizer, texts, Layout(5, seen_padding=1))
    assert full.ids.shape == (2, 5)


def test_an_unknown_tokenizer_is_refused() -> None:
    with pytest.raises(ModelNotSupported, match="model x: found a tokenizer of class object"):
        to_prompt_tokenizer(object(), "x")
