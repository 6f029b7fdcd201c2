"""A client's round: SGD on the trained values, over the client's own images.

The method defines the loss (`fedapt.training.methods`). FedProx adds mu/2 |x - start|^2.

Source: FedAvg (arXiv 1602.05629), FedProx (arXiv 1812.06127).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedapt.core.config import TrainConfig
from fedapt.core.errors import FederationError
from fedapt.core.names import ADAPTIVE_NETWORK
from fedapt.core.seeds import child_seed
from fedapt.data.domains import ImageSet, Labelled
from fedapt.data.partition import Client
from fedapt.training.methods.base import Learned, Method, Objective


@dataclass(frozen=True)
class ClientUpdate:
    """A client's reply.

    Attributes:
        client: its index.
        learned: the trained values after the local steps.
        n_samples: number of its images, which may weight its reply in the average.
        loss: mean loss over the images of its steps.
    """

    client: int
    learned: Learned
    n_samples: int
    loss: float


def draw_batches(data: ImageSet, config: TrainConfig, seed: int) -> Iterator[Labelled]:
    """The batches of a client's local epochs, shuffled in each.

    With `even_batches`, sizes differ by one at most. Otherwise the last batch can be small, and its
    step is as large as that of a full batch, which reduces accuracy.
    """
    generator = torch.Generator().manual_seed(seed)
    left = config.images_per_round or config.local_epochs * len(data)
    for _ in range(config.local_epochs):
        order = torch.randperm(len(data), generator=generator)[:left]
        left -= len(order)
        for places in _divide(order, config):
            if len(places):
                yield data.subset(places.to(data.rows.device)).load()


def _divide(order: Tensor, config: TrainConfig) -> Sequence[Tensor]:
    if config.even_batches:
        return torch.tensor_split(order, max(1, -(-len(order) // config.batch_size)))
    return torch.split(order, config.batch_size)


def learning_rate(config: TrainConfig, round_number: int) -> float:
    """The rate of a round, counted from 0; `cosine` falls from `lr` to nearly 0 at the last."""
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * round_number / config.rounds))
    return config.lr


def train_client(
    objective: Objective,
    start: Learned,
    batches: Iterable[Labelled],
    config: TrainConfig,
    *,
    round_number: int = 0,
    client: int = 0,
    name: str = "",
) -> ClientUpdate:
    """One client's round: SGD from the aggregate, with momentum that starts at zero.

    Args:
        objective: the method's loss for this client and round.
        start: the aggregate; not changed.
        batches: the client's images, in the order of the steps.
        name: name of the client, for errors.

    Raises:
        FederationError: the loss, or a learned value, is not finite.
    """
    learned = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    router = [tensor for name, tensor in learned.items() if name == ADAPTIVE_NETWORK]
    others = [tensor for name, tensor in learned.items() if name != ADAPTIVE_NETWORK]
    rate = learning_rate(config, round_number)
    router_rate = rate * (config.router_lr or config.lr) / config.lr
    groups = [{"params": others, "lr": rate}, {"params": router, "lr": router_rate}]
    optimizer = torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    total, n_samples = torch.zeros((), dtype=torch.float64), 0
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        loss = objective(learned, batch)
        total += loss.detach().double().cpu() * len(batch)  # without FedProx: comparable for any mu
        if config.proximal:
            moved = [(learned[name] - start[name]).square().sum() for name in learned]
            loss = loss + 0.5 * config.proximal * torch.stack(moved).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        n_samples += len(batch)
    found = {name: tensor.detach() for name, tensor in learned.items()}
    mean = float(total) / max(1, n_samples)
    broken = [name for name, tensor in found.items() if not bool(tensor.isfinite().all())]
    is_finite = math.isfinite(mean)
    if broken or not is_finite:
        raise FederationError(
            where=f"round {round_number + 1}, client {name or client}",
            shareable=True,
            found=f"{broken[0]} with NaN or infinity" if is_finite else f"a loss of {mean:g}",
            expected="finite numbers",
            next_step="lower train.lr; the checkpoint of the previous round is kept",
        )
    return ClientUpdate(client, found, n_samples, mean)


def train_round(
    method: Method, client: Client, share: Learned, config: TrainConfig, round_number: int
) -> ClientUpdate:
    """One client's round on any machine; the same round draws the same batches everywhere.

    Args:
        share: the client's part of the aggregate (`Method.share`); not changed.

    Raises:
        FederationError: the loss, or a learned value, is not finite.
    """
    if method.adds_up:
        return ClientUpdate(client.index, method.add_up(client), len(client.data), 0.0)
    seed = child_seed(config.seed, "batches", round_number, client.index)
    update = train_client(
        method.objective(share, client, round_number),
        share,
        draw_batches(client.data, config, seed),
        config,
        round_number=round_number,
        client=client.index,
        name=client.name,
    )
    return replace(update, n_samples=len(client.data))
