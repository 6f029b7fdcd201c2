"""PromptFL: the learned context averaged; no keys, no adaptive network.

    logits = exp(s) f^ . t(V);   loss = CE(logits, class)

Source: PromptFL (arXiv 2208.11625); the context is CoOp's (arXiv 2109.01134).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedapt.data.domains import Labelled
from fedapt.data.partition import Client
from fedapt.model.head import single_bank
from fedapt.model.prompt import start_context
from fedapt.training.methods.base import (
    ALL_DOMAINS,
    Fusable,
    Learned,
    Method,
    Objective,
    Predictor,
    Setting,
    text_logits,
)

CONTEXT = "context"


class PromptFL(Method):
    """Learned: V float32 [C, M, W] or [M, W]."""

    title = "PromptFL"
    source = "arXiv 2208.11625"

    def begin(self) -> Learned:
        """V before the first round."""
        return {CONTEXT: begin_context(self.setting)}

    def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
        """CE of the class."""
        return lambda learned, batch: context_loss(self.setting, learned[CONTEXT], batch)

    def predictor(self, learned: Learned) -> Predictor:
        """The logits of the shared context."""
        with torch.inference_mode():
            text = self.setting.text(learned[CONTEXT])
        return lambda images, domain: text_logits(self.setting, images.features, text)

    def fuse(self, learned: Learned, keys: tuple[str, ...], client: int | None = None) -> Fusable:
        """One bank of text features."""
        return fuse_context(self.setting, learned[CONTEXT], ALL_DOMAINS)


def fuse_context(setting: Setting, context: Tensor, names: tuple[str, ...]) -> Fusable:
    """One context, float32 [C, M, W] or [M, W], as a head of one bank."""
    with torch.inference_mode():
        text = setting.text(context)
    head = single_bank(text, setting.backbone.logit_scale)
    return Fusable(head, names, lambda features: text_logits(setting, features, text))


def begin_context(setting: Setting) -> Tensor:
    """V before the first round, float32 [C, M, W] or [M, W]."""
    config = setting.config
    context = start_context(
        setting.backbone, len(setting.class_names), config.prompt, config.train.seed
    )
    return context.to(setting.backbone.device)


def context_loss(setting: Setting, context: Tensor, batch: Labelled) -> Tensor:
    """CE of the class under one context, a scalar."""
    logits = text_logits(setting, batch.features, setting.training_text(context))
    return cross_entropy(logits, batch.labels)
