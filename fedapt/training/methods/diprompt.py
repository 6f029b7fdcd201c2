"""DiPrompT-style: a context that all share beside one of each domain's own, answering together.

    client n   loss = CE(exp(s) f^ . t(V), class) + CE(exp(s) f^ . t(V_n), class) + CE(Q f, n)
    server     w = softmax(standardised Q f / tau)
               logits = exp(s) f^ . (t(V) + sum_n w_n t(V_n)) / 2

V is averaged, V_n belongs to its domain. DiPrompT itself finds an image's domain by a learned query
prompt, as its clients do not know their domains; here they do, and the adaptive network of FedAPT
takes the query's place.

Source: DiPrompT (arXiv 2403.08506).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedapt.core.names import ADAPTIVE_NETWORK
from fedapt.data.domains import Labelled
from fedapt.data.partition import Client
from fedapt.model.adaptive_network import draw_adaptive_network
from fedapt.model.head import Head
from fedapt.training.methods.base import Fusable, Learned, Method, Objective, Predictor
from fedapt.training.methods.fedapt import network_loss
from fedapt.training.methods.promptfl import CONTEXT, begin_context, context_loss

CONTEXTS = "contexts"


class DiPrompt(Method):
    """Learned: V float32 [C, M, W] or [M, W], V_n of every key, and Q float32 [N, D]."""

    title = "DiPrompT-style"
    owned = {CONTEXTS: "key"}
    source = "arXiv 2403.08506"

    def begin(self) -> Learned:
        """The same context for all domains and for what they share, and Q."""
        s = self.setting
        context = begin_context(s)
        network = draw_adaptive_network(s.n_keys, s.backbone.joint_width, s.config.train.seed)
        return {
            CONTEXT: context,
            CONTEXTS: context.repeat(s.n_keys, *[1] * context.dim()),
            ADAPTIVE_NETWORK: network.to(s.backbone.device),
        }

    @property
    def step_bytes(self) -> int:
        """Two prompts a class."""
        return 2 * self.setting.prompts_bytes

    def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
        """CE of the class under either context, and CE of the domain."""

        def loss(learned: Learned, batch: Labelled) -> Tensor:
            return (
                context_loss(self.setting, learned[CONTEXT], batch)
                + context_loss(self.setting, learned[CONTEXTS], batch)
                + network_loss(learned[ADAPTIVE_NETWORK], client.key, batch.features)
            )

        return loss

    def predictor(self, learned: Learned) -> Predictor:
        """The shared text features and the routed ones, added."""
        head = self._head(learned)
        return lambda images, domain: head.logits(images.features)

    def routing(self, learned: Learned, features: Tensor) -> Tensor:
        """w, float32 [n, N]."""
        return self._head(learned).weights(features)

    def fuse(self, learned: Learned, keys: tuple[str, ...], client: int | None = None) -> Fusable:
        """A bank for each domain, of which the shared text features are one half."""
        head = self._head(learned)
        return Fusable(head, keys, head.logits)

    @torch.inference_mode()
    def _head(self, learned: Learned) -> Head:
        s = self.setting
        own = torch.stack([s.text(context) for context in learned[CONTEXTS]])
        return Head(
            (s.text(learned[CONTEXT]) + own) / 2,
            learned[ADAPTIVE_NETWORK],
            s.config.prompt.temperature,
            s.backbone.logit_scale,
            renormalised=False,
        )
