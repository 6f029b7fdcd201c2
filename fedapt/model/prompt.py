"""The meta prompt V, the domain keys E_n, and the personalised prompt P(w).

    P(w) = V * (1 + sum_n w_n E_n)        elementwise

Source: FedAPT (arXiv 2211.07864).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedapt.core.config import PromptConfig
from fedapt.core.errors import ConfigError
from fedapt.core.seeds import child_seed
from fedapt.model.backbone import Backbone

CONTEXT_STD = 0.02
UNIFORM_STD = 1 / math.sqrt(12)
RANDOM_START = "random"


def draw_keys(
    n_keys: int,
    context_length: int,
    width: int,
    seed: int,
    kind: str = "uniform",
    known: Tensor | None = None,
    std: float = 0.0,
) -> Tensor:
    """Frozen random keys: float32 [N, M, W].

    Every key has its own seed, so a domain that joins later changes no other key.

    Args:
        known: the first keys, those of a federation that is joined.
        kind: `uniform` around 1/2, `normal` of mean 0, `signs`, either of two values, or
            `orthogonal`, normal keys made orthogonal to the ones before them.
        std: standard deviation of a key's values; 0 for the default of the kind: 1 / sqrt(12) for
            `uniform`, which gives [0, 1), and 1 for the others.
    """
    std = std or (UNIFORM_STD if kind == "uniform" else 1.0)
    keys: list[Tensor] = [] if known is None else [*known]
    for index in range(len(keys), n_keys):
        generator = torch.Generator().manual_seed(child_seed(seed, "key", index))
        if kind == "uniform":
            key = torch.rand(context_length, width, generator=generator)
            # by default the drawn values are not scaled, and so not rounded
            keys.append(key if std == UNIFORM_STD else 0.5 + (key - 0.5) * (std / UNIFORM_STD))
            continue
        key = torch.randn(context_length, width, generator=generator, dtype=torch.float64)
        if kind == "orthogonal":
            if index >= context_length * width:
                raise ConfigError(
                    where=f"prompt.n_keys = {n_keys}",
                    found="orthogonal keys",
                    expected=f"at most {context_length * width}, the values of a key",
                    next_step="lower prompt.n_keys, or choose prompt.keys=normal",
                )
            for _ in range(2):  # twice, because one pass leaves rounding errors
                for other in keys:
                    other = other.double()
                    key = key - other * (key * other).sum() / other.square().sum()
            key = key * math.sqrt(key.numel()) / key.norm()
        if kind == "signs":
            key = key.sign()
        keys.append((key * std).float())
    return torch.stack(keys)


def start_context(backbone: Backbone, n_classes: int, prompt: PromptConfig, seed: int) -> Tensor:
    """The context before training: normal(0, 0.02), or ending with the tokens of a phrase.

    Returns:
        float32 [C, M, W] where `prompt.class_specific`, else [M, W], on the CPU.

    Raises:
        ConfigError: the phrase is longer than the context.
    """
    generator = torch.Generator().manual_seed(child_seed(seed, "context"))
    classes = (n_classes,) if prompt.class_specific else ()
    shape = (*classes, prompt.context_length, backbone.text_tower.width)
    context = CONTEXT_STD * torch.randn(*shape, generator=generator)
    if prompt.start != RANDOM_START:
        ids = backbone.prompts.encode(prompt.start)
        if not 0 < len(ids) <= prompt.context_length:
            raise ConfigError(
                where=f"prompt.start = {prompt.start!r}",
                found=f"{len(ids)} tokens",
                expected=f"1 to prompt.context_length = {prompt.context_length}",
                next_step="shorten the phrase, or raise prompt.context_length",
            )
        rows = torch.tensor(ids, device=backbone.device)
        with torch.no_grad():
            context[..., -len(ids) :, :] = backbone.text_tower.token_embedding(rows).cpu()
    return context


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
