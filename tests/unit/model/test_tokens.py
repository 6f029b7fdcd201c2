"""Prompts as token ids: [SOS] [X] * M [name.] [EOS], never cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedapt.core.errors import DataError
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.tokens import tokenize_prompts, tokenize_texts

SOS, EOS, X, FULL_STOP = 49406, 49407, 343, 269


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return import_open_clip().SimpleTokenizer()


def test_the_layout(tokenizer: Any) -> None:
    tokens = tokenize_prompts(tokenizer, ("mug", "red square"), 3, 77)
    ((mug,), (red,), (square,)) = (tokenizer.encode(word) for word in ("mug", "red", "square"))
    assert tokens.ids.tolist() == [
        [SOS, X, X, X, mug, FULL_STOP, EOS, 0],
        [SOS, X, X, X, red, square, FULL_STOP, EOS],
    ]
    assert tokens.eos.tolist() == [6, 7]
    assert tokens.context_length == 3
    assert tokens.ids.dtype == tokens.eos.dtype == torch.int64


def test_the_ids_are_open_clips_own(tokenizer: Any) -> None:
    names = ("mug", "back pack", "Hängematte, grün", "x")
    tokens = tokenize_prompts(tokenizer, names, 4, 77)
    theirs = tokenizer([f"X X X X {name}." for name in names])
    length = tokens.ids.shape[1]
    assert torch.equal(tokens.ids, theirs[:, :length])
    assert int(theirs[:, length:].abs().sum()) == 0
    assert torch.equal(tokens.eos, theirs.argmax(-1))


def test_a_prompt_that_just_fits_is_taken_and_one_more_token_refused(tokenizer: Any) -> None:
    # SOS, 71 context tokens, red, square, full stop, EOS
    assert tokenize_prompts(tokenizer, ("red square",), 71, 76).ids.shape == (1, 76)
    with pytest.raises(
        DataError,
        match=r"class 'red square': found a prompt of 77 tokens; expected at most 76, "
        r"with 72 context tokens\. To do: shorten the class name or the context",
    ):
        tokenize_prompts(tokenizer, ("mug", "red square"), 72, 76)


def test_texts_have_no_context(tokenizer: Any) -> None:
    texts = ("a photo of a mug.", "a mug")
    tokens = tokenize_texts(tokenizer, texts, 77)
    theirs = tokenizer(list(texts))
    assert torch.equal(tokens.ids, theirs[:, :8])
    assert tokens.eos.tolist() == [7, 3]
    assert tokens.context_length == 0


def test_a_text_that_is_too_long_is_refused(tokenizer: Any) -> None:
    long = "mug " * 76
    with pytest.raises(DataError, match="found a prompt of 78 tokens; expected at most 77, with 0"):
        tokenize_texts(tokenizer, (long,), 77)
    assert tokenize_texts(tokenizer, (long[:-4],), 77).ids.shape == (1, 77)
