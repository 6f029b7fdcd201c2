"""Class names -> token ids of prompts with room for the learned context.

[SOS] [X] * M [tokens of "{class name}."] [EOS], and padding as the text tower requires. Tokenizers
differ in the tokens around a text: CLIP's adds one on each side, SigLIP's adds none before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fedapt.core.errors import DataError, ModelNotSupported


@dataclass(frozen=True)
class PromptTokenizer:
    """The parts of a tokenizer; learned vectors go between their tokens.

    Attributes:
        encode: text -> its tokens without special tokens.
        before, behind: special tokens before and after every text.
        padding: the token that fills a row.
    """

    encode: Callable[[str], list[int]]
    before: tuple[int, ...]
    behind: tuple[int, ...]
    padding: int


@dataclass(frozen=True)
class Layout:
    """The rows of tokens that a text tower reads.

    Attributes:
        most: maximum number of tokens of a row.
        whole: every row has that many tokens, because a tower that is not causal sees padding.
        seen_padding: tokens of padding after EOS that the tower sees, if the row has room.
        pooled: the position whose output is the feature.
    """

    most: int
    whole: bool = False
    seen_padding: int = 0
    pooled: Literal["EOS", "last"] = "EOS"


@dataclass(frozen=True)
class PromptTokens:
    """Token ids of one prompt per class, cut to the longest prompt.

    Attributes:
        ids: int64 [C, length].
        pooled: int64 [C], the position of each prompt's EOS, or of its last token of padding.
        n_before: special tokens before the context.
        context_length: M, tokens after these, whose embeddings are replaced.
    """

    ids: Tensor
    pooled: Tensor
    n_before: int
    context_length: int


def to_prompt_tokenizer(tokenizer: Any, name: str) -> PromptTokenizer:
    """OpenCLIP's byte-pair tokenizer, or a Hugging Face tokenizer inside OpenCLIP's.

    Args:
        name: name of the model, for errors.

    Raises:
        ModelNotSupported: any other tokenizer.
    """
    if hasattr(tokenizer, "sot_token_id") and hasattr(tokenizer, "encode"):
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
        return PromptTokenizer(tokenizer.encode, (start,), (end,), 0)
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None or not hasattr(tokenizer, "clean_fn") or tokenizer.tokenizer_mode:
        raise ModelNotSupported(
            where=f"model {name}",
            found=f"a tokenizer of class {type(tokenizer).__name__}",
            expected="CLIP's byte-pair tokenizer, or a plain one of Hugging Face's",
            next_step="choose another model, such as ViT-B-32-quickgelu or lite",
        )

    def encode(text: str) -> list[int]:
        ids: list[int] = inner(tokenizer.clean_fn(text), add_special_tokens=False).input_ids
        return ids

    text = encode("X")
    around: list[int] = inner(tokenizer.clean_fn("X")).input_ids
    first = next(i for i in range(len(around)) if around[i : i + len(text)] == text)
    end = around[first + len(text) :]
    if tokenizer.strip_sep_token:
        end = [0 if token == inner.sep_token_id else token for token in end]
    return PromptTokenizer(encode, tuple(around[:first]), tuple(end), int(inner.pad_token_id))


def tokenize_prompts(
    tokenizer: PromptTokenizer, class_names: tuple[str, ...], context_length: int, layout: Layout
) -> PromptTokens:
    """Token ids of "X X ... X {name}." for every class.

    Raises:
        DataError: a prompt is longer than the text tower takes; it is never cut silently.
    """
    placeholder = tokenizer.encode("X")[0]
    texts = [[placeholder] * context_length + tokenizer.encode(f"{n}.") for n in class_names]
    return _arrange(tokenizer, texts, class_names, context_length, layout)


def tokenize_texts(
    tokenizer: PromptTokenizer, texts: tuple[str, ...], layout: Layout
) -> PromptTokens:
    """Token ids of plain texts, such as "a photo of a mug.", without a learned context.

    Raises:
        DataError: a text is longer than the tower takes.
    """
    return _arrange(tokenizer, [tokenizer.encode(text) for text in texts], texts, 0, layout)


def _arrange(
    tokenizer: PromptTokenizer,
    texts: list[list[int]],
    names: tuple[str, ...],
    context_length: int,
    layout: Layout,
) -> PromptTokens:
    rows = [[*tokenizer.before, *text, *tokenizer.behind] for text in texts]
    for row, name in zip(rows, names, strict=True):
        if len(row) > layout.most:
            raise DataError(
                where=f"class {name!r}",
                found=f"a prompt of {len(row)} tokens",
                expected=f"at most {layout.most}, with {context_length} context tokens",
                next_step="shorten the class name, or set `prompt.context_length = 16`",
            )
    longest = max((len(row) for row in rows), default=0)
    length = layout.most if layout.whole else min(layout.most, longest + layout.seen_padding)
    ids = torch.full((len(rows), length), tokenizer.padding)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    if layout.pooled == "last":
        pooled = torch.full((len(rows),), length - 1)
    else:
        pooled = torch.tensor([len(row) - 1 for row in rows])
    return PromptTokens(ids, pooled, len(tokenizer.before), context_length)
