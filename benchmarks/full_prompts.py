"""Prompts at CLIP's full 77 tokens, as scripts that cut nothing encode them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedapt.model.prompted_clip import PromptedText


def encode_full_prompts(text: PromptedText, prompts: Tensor) -> Tensor:
    """Unit text features float32 [C, D] of personalised prompts float32 [C, M, W]."""
    n_classes, context_length, width = prompts.shape
    used = 1 + context_length + text.after.shape[1]
    padding = torch.zeros(n_classes, text.tower.layout.most - used, width)
    embeddings = torch.cat(
        [text.before.expand(n_classes, -1, -1), prompts, text.after, padding], dim=1
    )
    return normalize(text.tower(embeddings, text.pooled), dim=-1)
