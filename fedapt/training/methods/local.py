"""Local only: every client trains its own context and sends nothing.

A client's model classifies the images of its own domain. Images of a domain without clients are
classified by every client's model, and the accuracy is the mean over the models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedapt.data.domains import Labelled
from fedapt.data.partition import Client
from fedapt.training.methods.base import (
    Fusable,
    Learned,
    Method,
    Objective,
    Predictor,
    text_logits,
)
from fedapt.training.methods.promptfl import begin_context, context_loss, fuse_context

CONTEXTS = "contexts"


class Local(Method):
    """Learned: V of every client, float32 [clients, C, M, W] or [clients, M, W]."""

    title = "local only"
    owned = {CONTEXTS: "client"}
    sends = False

    def begin(self) -> Learned:
        """The same initial context for every client."""
        context = begin_context(self.setting)
        return {CONTEXTS: context.repeat(len(self.setting.clients), *[1] * context.dim())}

    def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
        """CE of the class."""
        return lambda learned, batch: context_loss(self.setting, learned[CONTEXTS], batch)

    def predictor(self, learned: Learned) -> Predictor:
        """Logits of each model that answers, float32 [models, n, C]."""
        with torch.inference_mode():
            texts = [self.setting.text(context) for context in learned[CONTEXTS]]
        clients = self.setting.clients

        def predict(images: Labelled, domain: int | None) -> Tensor:
            own = [c.index for c in clients if domain is None or c.domain == domain]
            return torch.stack([text_logits(self.setting, images.features, texts[i]) for i in own])

        return predict

    def fuse(self, learned: Learned, keys: tuple[str, ...], client: int | None = None) -> Fusable:
        """The model of one client, as each has its own."""
        if client is None:
            raise ValueError("a client is needed")
        name = self.setting.clients[client].name
        return fuse_context(self.setting, learned[CONTEXTS][client], (name,))
