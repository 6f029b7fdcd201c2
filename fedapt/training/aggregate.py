"""Aggregation of a round's replies on the server.

    mean       x <- mean over the round's clients, uniform or weighted by their images
    sum        x <- x + sum over the round's clients, of a method whose replies add up
    clip       updates longer than C are scaled down to C before aggregation
    noise      x <- x + (sum of updates of length C at most + N(0, (z C)^2)) / n

A tensor with a slice for each key or client is averaged over the owners of each slice. A slice that
no client of the round owns does not change. Replies are added as they arrive, so memory does not
grow with the number of clients.

With noise, n is the number of clients that were drawn for the round. It is public and does not
depend on the replies. One client's update, or zero in its place, changes the sum by C at most, so
the noise multiplier is z. Sums are not divided: their n is 1.

Source: FedAPT (arXiv 2211.07864), FedAvg (arXiv 1602.05629); a fixed denominator after DP-FedAvg
(arXiv 1710.06963), zero in place of an update after DP-FTRL (arXiv 2103.00039).
`training.robust` has the robust aggregates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fedapt.core.config import Config
from fedapt.data.partition import ClientInfo
from fedapt.training.client import ClientUpdate
from fedapt.training.methods.base import Learned, Method
from fedapt.training.privacy import clip_move, draw_normal, shorten
from fedapt.training.robust import Vote


class Aggregation(Protocol):
    """A round's aggregate, computed from replies as they arrive."""

    def add(self, update: ClientUpdate, slots: Mapping[str, int]) -> None:
        """Take one reply.

        Args:
            slots: tensor -> index of the slice that this client owns; others are shared by all.
        """
        ...

    def result(self) -> Learned:
        """The aggregate; the start if no client has replied.

        Raises:
            FederationError: too few replies for this aggregate.
        """
        ...


@dataclass(frozen=True)
class Aggregated:
    """Result of an aggregation.

    Attributes:
        learned: the aggregate.
        loss: mean loss over the images.
        n_images, n_replies: numbers of images and replies of all clients.
        noise_multiplier: deviation of the noise over the sensitivity; None without noise.
    """

    learned: Learned
    loss: float
    n_images: int
    n_replies: int
    noise_multiplier: float | None


def aggregate(
    config: Config,
    method: Method,
    start: Learned,
    clients: Sequence[ClientInfo],
    updates: Iterable[ClientUpdate],
) -> Aggregated:
    """The aggregate that a run's settings select.

    Args:
        start: the aggregate of the round before.
        clients: all clients of the round, with or without a reply.
        updates: updates of the clients that replied.

    Raises:
        FederationError: too few replies for this aggregate.
    """
    chosen, known = config.federation, {client.index: client for client in clients}
    origin = find_origin(method, start)
    total = begin_aggregation(config, method, start, len(clients))
    n_images, n_replies, loss = 0, 0, 0.0
    for update in updates:
        client = known[update.client]
        if chosen.clip and not chosen.noise:
            update = shorten(update, method.share(origin, client), chosen.clip)
        total.add(update, method.slots(client))
        n_images += update.n_samples
        loss += update.loss * update.n_samples
        n_replies += 1
    multiplier = chosen.noise or None
    return Aggregated(total.result(), loss / max(1, n_images), n_images, n_replies, multiplier)


def find_origin(method: Method, start: Learned) -> Learned:
    """Reply of a client without images: the start, or sums of zero."""
    if not method.adds_up:
        return start
    return {name: torch.zeros_like(tensor) for name, tensor in start.items()}


def begin_aggregation(
    config: Config, method: Method, start: Learned, n_clients: int
) -> Aggregation:
    """An aggregate without replies.

    Args:
        n_clients: number of clients drawn for the round.
    """
    federation = config.federation
    if federation.noise:
        count, origin = 1 if method.adds_up else n_clients, find_origin(method, start)
        return NoisyMean(start, origin, federation.clip, federation.noise, count)
    if method.adds_up:
        return Total(start)
    if federation.aggregation == "mean":
        return Average(start, config.train.weighting)
    return Vote(start, federation)


@dataclass
class Total:
    """Sum of replies and the sums so far (`Method.adds_up`). See `Aggregation`.

    Args:
        start: the aggregate of the round before.
    """

    start: Learned
    _sums: dict[tuple[str, int | None], Tensor] = field(default_factory=dict)

    def add(self, update: ClientUpdate, slots: Mapping[str, int]) -> None:
        """Take one reply."""
        for name, tensor in update.learned.items():
            slot = (name, slots.get(name))
            known = self._sums.get(slot)
            self._sums[slot] = tensor.double() if known is None else known + tensor.double()

    def result(self) -> Learned:
        """The start and the replies."""
        learned = dict(self.start)
        for (name, index), total in self._sums.items():
            if index is None:
                learned[name] = (learned[name].double() + total).float()
            else:
                if learned[name] is self.start[name]:
                    learned[name] = self.start[name].clone()
                learned[name][index] = (learned[name][index].double() + total).float()
        return learned


@dataclass
class _Sum:
    """Weighted float64 sum of replies for one tensor, or one slice of it."""

    total: Tensor
    weight: float


@dataclass
class Average:
    """The mean. See `Aggregation`.

    Args:
        start: the aggregate of the round before.
        weighting: `uniform` or `samples`.
    """

    start: Learned
    weighting: str
    _sums: dict[tuple[str, int | None], _Sum] = field(default_factory=dict)

    def add(self, update: ClientUpdate, slots: Mapping[str, int]) -> None:
        """Take one reply."""
        weight = float(update.n_samples) if self.weighting == "samples" else 1.0
        for name, tensor in update.learned.items():
            # integer weights times float32 values have almost exact sums in float64
            value = tensor.double() * weight
            slot = (name, slots.get(name))
            if (known := self._sums.get(slot)) is None:
                self._sums[slot] = _Sum(value, weight)
            else:
                known.total += value
                known.weight += weight

    def result(self) -> Learned:
        """The mean of each tensor and slice."""
        learned = dict(self.start)
        for (name, index), total in self._sums.items():
            mean = (total.total / total.weight).float()
            if index is None:
                learned[name] = mean
            else:
                if learned[name] is self.start[name]:
                    learned[name] = self.start[name].clone()
                learned[name][index] = mean
        return learned


class NoisyMean:
    """The mean with the noise of central differential privacy. See `Aggregation`.

    Args:
        start: the aggregate of the round before.
        origin: the values from which a reply's update is measured.
        clip, noise: C and z.
        count: n.
    """

    def __init__(
        self, start: Learned, origin: Learned, clip: float, noise: float, count: int
    ) -> None:
        self._start, self._origin = start, origin
        self._clip, self._noise, self._n = clip, noise, count
        self._moved = {name: tensor.double() * 0 for name, tensor in start.items()}

    def add(self, update: ClientUpdate, slots: Mapping[str, int]) -> None:
        """Take one reply, whose tensors are all shared."""
        for name, tensor in clip_move(update.learned, self._origin, self._clip).items():
            self._moved[name] += tensor

    def result(self) -> Learned:
        """The start plus the noisy sum over n; each call draws new noise."""
        learned = {}
        for name, moved in self._moved.items():
            noise = self._noise * self._clip * draw_normal(moved)
            learned[name] = (self._start[name].double() + (moved + noise) / self._n).float()
        return learned
