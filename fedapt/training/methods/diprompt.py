"""DiPrompT-style: a shared context and one for each domain, whose logits are averaged.

    client n   loss = CE(exp(s) f^ . t(V), class) + CE(exp(s) f^ . t(V_n), class) + CE(Q f, n)
    server     w = softmax(standardised Q f / tau)
               logits = exp(s) f^ . (t(V) + sum_n w_n t(V_n)) / 2

V is averaged. The domains' contexts and Q are those of ADAPT-style. DiPrompT itself finds an
image's domain by a learned query prompt, because its clients do not know their domains. Here
clients know their domains, and FedAPT's adaptive network replaces the query.

Source: DiPrompT (arXiv 2403.08506).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fedapt.data.domains import Labelled
from fedapt.data.partition import Client
from fedapt.model.head import Head
from fedapt.training.methods.adapt import Adapt
from fedapt.training.methods.base import Learned, Objective
from fedapt.training.methods.promptfl import CONTEXT, begin_context, context_loss


class DiPrompt(Adapt):
    """Learned: V float32 [C, M, W] or [M, W], V_n of every key, and Q float32 [N, D]."""

    title = "DiPrompT-style"
    source = "arXiv 2403.08506"

    def begin(self) -> Learned:
        """The same initial values for all contexts, and Q."""
        return {CONTEXT: begin_context(self.setting), **super().begin()}

    @property
    def step_bytes(self) -> int:
        """Memory of two prompts for each class."""
        return 2 * self.setting.prompts_bytes

    def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
        """CE of the class under either context, and CE of the domain."""
        own = super().objective(start, client, round_number)

        def loss(learned: Learned, batch: Labelled) -> Tensor:
            return context_loss(self.setting, learned[CONTEXT], batch) + own(learned, batch)

        return loss

    @torch.inference_mode()
    def head(self, learned: Learned) -> Head:
        """A bank for each domain: half its own text features, half the shared ones."""
        head = super().head(learned)
        banks = (self.setting.text(learned[CONTEXT]) + head.banks) / 2
        return dataclasses.replace(head, banks=banks, renormalised=False)
