"""Class names -> token ids of prompts with room for the learned context.

[SOS] [X] * M [tokens of "{class name}."] [EOS]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedapt.core.errors import DataError


@dataclass(frozen=True)
class PromptTokens:
    """Token ids of one prompt per class, cut to the longest.

    Attributes:
        ids: int64 [C, length]; zeros behind a prompt's EOS.
        eos: int64 [C], position of each prompt's EOS.
        context_length: M, tokens at positions 1..M whose embeddings are replaced.
    """

    ids: Tensor
    eos: Tensor
    context_length: int


def tokenize_prompts(
    tokenizer: Any, class_names: tuple[str, ...], context_length: int, max_length: int
) -> PromptTokens:
    """Token ids of "X X ... X {name}." for every class.

    Args:
        tokenizer: CLIP's byte-pair tokenizer.
        max_length: the most tokens that the text tower takes.

    Raises:
        DataError: a prompt is longer than that; it is never cut silently.
    """
    (placeholder,) = tokenizer.encode("X")
    rows = [
        [
            tokenizer.sot_token_id,
            *[placeholder] * context_length,
            *tokenizer.encode(f"{name}."),
            tokenizer.eot_token_id,
        ]
        for name in class_names
    ]
    return _pad(rows, class_names, context_length, max_length)


def tokenize_texts(tokenizer: Any, texts: tuple[str, ...], max_length: int) -> PromptTokens:
    """Token ids of plain texts, such as "a photo of a mug.", without a learned context.

    Raises:
        DataError: a text is longer than the tower takes.
    """
    rows = [[tokenizer.sot_token_id, *tokenizer.encode(t), tokenizer.eot_token_id] for t in texts]
    return _pad(rows, texts, 0, max_length)


def _pad(
    rows: list[list[int]], names: tuple[str, ...], context_length: int, max_length: int
) -> PromptTokens:
    for row, name in zip(rows, names, strict=True):
        if len(row) > max_length:
            raise DataError(
                where=f"class {name!r}",
                found=f"a prompt of {len(row)} tokens",
                expected=f"at most {max_length}, with {context_length} context tokens",
                next_step="shorten the class name or the context (-o prompt.context_length=16)",
            )
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return PromptTokens(ids, torch.tensor([len(row) - 1 for row in rows]), context_length)
