"""What one client does in one round: SGD on V and Q over its own images.

    logits = exp(s) f^ . t(one-hot n);   loss = CE(logits, class) + CE(Q f, n)

Source: FedAPT (arXiv 2211.07864).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from fedapt.core.config import TrainConfig
from fedapt.data.domains import Labelled
from fedapt.model.prompt import personalise
from fedapt.model.prompted_clip import PromptedText


@dataclass(frozen=True)
class Learned:
    """What is trained and sent: V, float32 [C, M, W] or [M, W], and Q, float32 [N, D]."""

    context: Tensor
    adaptive_network: Tensor

    @property
    def n_bytes(self) -> int:
        """Bytes on the wire."""
        return sum(t.numel() * t.element_size() for t in (self.context, self.adaptive_network))


@dataclass(frozen=True)
class ClientUpdate:
    """A client's reply.

    Attributes:
        learned: V and Q after its local steps.
        n_samples: images it trained on.
        loss: mean loss over those images.
    """

    learned: Learned
    n_samples: int
    loss: float


@dataclass(frozen=True)
class ClientTask:
    """What a client needs beside its images; the same in every round.

    Attributes:
        text: the text side of the classes, frozen.
        keys: E, float32 [N, M, W], frozen.
        domain: n, the index of the client's domain, whose key it uses.
        logit_scale: exp(s).
        train: optimiser settings.
    """

    text: PromptedText
    keys: Tensor
    domain: int
    logit_scale: float
    train: TrainConfig

    def loss(
        self, context: Tensor, adaptive_network: Tensor, features: Tensor, labels: Tensor
    ) -> Tensor:
        """The client's loss on one batch, a scalar.

        Args:
            features: f, float32 [batch, D], not normalised.
            labels: int64 [batch].
        """
        logits, domain_logits = self.logits(context, adaptive_network, features)
        domain = torch.full_like(labels, self.domain)
        return cross_entropy(logits, labels) + cross_entropy(domain_logits, domain)

    def logits(
        self, context: Tensor, adaptive_network: Tensor, features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Class logits float32 [batch, C] under the domain's own key, domain logits [batch, N]."""
        one_hot = torch.zeros(len(self.keys), device=self.keys.device)
        one_hot[self.domain] = 1
        text = self.text(personalise(context, self.keys, one_hot))
        logits = self.logit_scale * normalize(features, dim=-1) @ text.T
        return logits, features @ adaptive_network.T


def draw_batches(data: Labelled, config: TrainConfig, seed: int) -> Iterator[Labelled]:
    """The batches of a client's local epochs, shuffled anew in each; the last may be short."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(config.local_epochs):
        order = torch.randperm(len(data), generator=generator).to(data.labels.device)
        for rows in torch.split(order, config.batch_size):
            yield Labelled(data.features[rows], data.labels[rows])


def train_client(task: ClientTask, start: Learned, batches: Iterable[Labelled]) -> ClientUpdate:
    """One client's round: SGD from the aggregate, with momentum that starts at zero.

    Args:
        start: the aggregate; not changed.
        batches: the client's images, in the order of the steps.
    """
    config = task.train
    context = start.context.clone().requires_grad_()
    adaptive_network = start.adaptive_network.clone().requires_grad_()
    optimizer = torch.optim.SGD(
        [context, adaptive_network],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    total, n_samples = 0.0, 0
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        loss = task.loss(context, adaptive_network, batch.features, batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += float(loss.detach()) * len(batch)
        n_samples += len(batch)
    learned = Learned(context.detach(), adaptive_network.detach())
    return ClientUpdate(learned, n_samples, total / max(1, n_samples))
