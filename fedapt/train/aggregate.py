"""How the server averages the clients' replies.

    x <- mean over the round's clients, uniform or weighted by their images

A tensor that belongs to keys or clients is averaged over those that own a slice of it; a slice that
no client of the round owns stays as it is. Replies are added up one by one as they come, so memory
does not grow with the number of clients.

Source: FedAPT (arXiv 2211.07864), FedAvg (arXiv 1602.05629).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fedapt.core.records import Record
from fedapt.train.client import ClientUpdate
from fedapt.train.methods.base import Learned, Method


class Aggregation(Protocol):
    """What the server makes of a round's replies."""

    def add(self, update: ClientUpdate, slots: Mapping[str, int]) -> None:
        """Take one reply; see `Average.add`."""
        ...

    def result(self, start: Learned) -> Learned:
        """The aggregate; `start` where no client has replied."""
        ...

    def describe(self, rounds: int) -> Record:
        """What the record of the last of `rounds` rounds should say of it."""
        ...


@dataclass
class _Sum:
    """Weighted float64 sum of replies for one tensor, or one slice of it."""

    total: Tensor
    weight: float


@dataclass
class Total:
    """What replies of sums add to those that there are, see `Method.adds_up`.

    Args:
        mean: of the replies; None adds them up as they come, which slices of owners ask for.
    """

    mean: Aggregation | None = None
    _sums: dict[tuple[str, int | None], Tensor] = field(default_factory=dict)
    _count: int = 0

    def add(self, update: ClientUpdate, slots: Mapping[str, int]) -> None:
        """Take one reply; see `Average.add`."""
        self._count += 1
        if self.mean is not None:
            self.mean.add(update, slots)
            return
        for name, tensor in update.learned.items():
            slot = (name, slots.get(name))
            known = self._sums.get(slot)
            self._sums[slot] = tensor.double() if known is None else known + tensor.double()

    def describe(self, rounds: int) -> Record:
        """What the mean says of it."""
        return {} if self.mean is None else self.mean.describe(rounds)

    def result(self, start: Learned) -> Learned:
        """`start` and the replies."""
        if self.mean is not None:
            zeros = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
            means = self.mean.result(zeros)
            self._sums = {(n, None): self._count * t.double() for n, t in means.items()}
        learned = dict(start)
        for (name, index), total in self._sums.items():
            if index is None:
                learned[name] = (learned[name].double() + total).float()
            else:
                if learned[name] is start[name]:
                    learned[name] = start[name].clone()
                learned[name][index] = (learned[name][index].double() + total).float()
        return learned


@dataclass
class Average:
    """A round's average, made of replies as they come.

    Args:
        weighting: `uniform` or `samples`.
    """

    weighting: str
    _sums: dict[tuple[str, int | None], _Sum] = field(default_factory=dict)

    def add(self, update: ClientUpdate, slots: Mapping[str, int]) -> None:
        """Add one reply.

        Args:
            slots: tensor -> index of the slice that this client owns; others are shared by all.
        """
        weight = float(update.n_samples) if self.weighting == "samples" else 1.0
        for name, tensor in update.learned.items():
            # whole counts times float32 values add up almost exactly in float64
            value = tensor.double() * weight
            slot = (name, slots.get(name))
            if (known := self._sums.get(slot)) is None:
                self._sums[slot] = _Sum(value, weight)
            else:
                known.total += value
                known.weight += weight

    def describe(self, rounds: int) -> Record:
        """Nothing: a mean has no more to say."""
        return {}

    def result(self, start: Learned) -> Learned:
        """The aggregate; `start` where no client has replied."""
        learned = dict(start)
        for (name, index), total in self._sums.items():
            mean = (total.total / total.weight).float()
            if index is None:
                learned[name] = mean
            else:
                if learned[name] is start[name]:
                    learned[name] = start[name].clone()
                learned[name][index] = mean
        return learned


def begin_aggregate(method: Method, weighting: str) -> Aggregation:
    """The plain aggregate of a method's replies, for one round."""
    return Total() if method.adds_up else Average(weighting)
