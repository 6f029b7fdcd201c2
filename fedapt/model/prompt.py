"""The meta prompt V, the domain keys E_n, and the personalised prompt P(w).

    P(w) = V * (1 + sum_n w_n E_n)        elementwise

Source: FedAPT (arXiv 2211.07864).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedapt.core.seeds import child_seed

CONTEXT_STD = 0.02


def draw_keys(n_domains: int, context_length: int, width: int, seed: int) -> Tensor:
    """Frozen random keys, uniform in [0, 1): float32 [N, M, W].

    Every key has a seed of its own, so a domain that joins later moves no other key.
    """
    keys = []
    for index in range(n_domains):
        generator = torch.Generator().manual_seed(child_seed(seed, "key", index))
        keys.append(torch.rand(context_length, width, generator=generator))
    return torch.stack(keys)


def draw_context(
    n_classes: int, context_length: int, width: int, seed: int, class_specific: bool
) -> Tensor:
    """The meta prompt before training, normal(0, 0.02).

    Returns:
        float32 [C, M, W] where `class_specific`, else [M, W].
    """
    generator = torch.Generator().manual_seed(child_seed(seed, "context"))
    classes = (n_classes,) if class_specific else ()
    return CONTEXT_STD * torch.randn(*classes, context_length, width, generator=generator)


def personalise(context: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    """P(w) for one weight vector or a batch of them.

    Args:
        context: V, float32 [C, M, W] or [M, W].
        keys: E, float32 [N, M, W].
        weights: w, float32 [N] or [batch, N].

    Returns:
        float32 of the shape of `context`, with a leading batch axis where `weights` has one.
    """
    mixed = 1 + torch.einsum("...n,nmw->...mw", weights, keys)
    if context.dim() == 3 and weights.dim() == 2:
        mixed = mixed.unsqueeze(1)  # one factor for all classes of an image
    return context * mixed
