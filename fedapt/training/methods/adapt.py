"""ADAPT-style domain prompts: each domain owns a context, and contexts are not averaged.

    client n   logits = exp(s) f^ . t(V_n);   loss = CE(logits, class) + CE(Q f, n)
    server     w = softmax(standardised Q f / tau);  logits through the mixed banks t(V_n)

The adaptive network is averaged, and routes as in FedAPT. The difference is that no context is
shared. ADAPT itself learns the weights with visual prompts inside the image tower. A frozen tower
with cached features has no such prompts.

Source: ADAPT (arXiv 2310.03103).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedapt.core.names import ADAPTIVE_NETWORK
from fedapt.data.domains import Labelled
from fedapt.data.partition import Client
from fedapt.model.adaptive_network import domain_weights, draw_adaptive_network
from fedapt.model.head import Head
from fedapt.training.methods.base import Fusable, Learned, Method, Objective, Predictor
from fedapt.training.methods.fedapt import network_loss
from fedapt.training.methods.promptfl import begin_context, context_loss

CONTEXTS = "contexts"


class Adapt(Method):
    """Learned: V of every key, float32 [N, C, M, W] or [N, M, W], and Q float32 [N, D]."""

    title = "ADAPT-style"
    owned = {CONTEXTS: "key"}
    source = "arXiv 2310.03103"

    def begin(self) -> Learned:
        """The same context for every domain, and Q."""
        s = self.setting
        context = begin_context(s)
        network = draw_adaptive_network(s.n_keys, s.backbone.joint_width, s.config.train.seed)
        return {
            CONTEXTS: context.repeat(s.n_keys, *[1] * context.dim()),
            ADAPTIVE_NETWORK: network.to(s.backbone.device),
        }

    def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
        """CE of the class under the domain's own context, and CE of its domain."""

        def loss(learned: Learned, batch: Labelled) -> Tensor:
            return context_loss(self.setting, learned[CONTEXTS], batch) + network_loss(
                learned[ADAPTIVE_NETWORK], client.key, batch.features
            )

        return loss

    def predictor(self, learned: Learned) -> Predictor:
        """Text banks of the domains' contexts, mixed by w."""
        head = self.head(learned)
        return lambda images, domain: head.logits(images.features)

    def fuse(self, learned: Learned, keys: tuple[str, ...], client: int | None = None) -> Fusable:
        """A bank of text features for each domain's context."""
        head = self.head(learned)
        return Fusable(head, keys, head.logits)

    @torch.inference_mode()
    def head(self, learned: Learned) -> Head:
        """The banks and their router."""
        s = self.setting
        return Head(
            torch.stack([s.text(context) for context in learned[CONTEXTS]]),
            learned[ADAPTIVE_NETWORK],
            s.config.prompt.temperature,
            s.backbone.logit_scale,
        )

    def routing(self, learned: Learned, features: Tensor) -> Tensor:
        """w, float32 [n, N]."""
        scores = features @ learned[ADAPTIVE_NETWORK].T
        return domain_weights(scores, self.setting.config.prompt.temperature)
