"""Aggregations that are robust against wrong replies, malicious or not.

    median         of each value; it lies between honest values if n >= 2 f + 1
    trimmed-mean   of each value, without the b largest and b smallest, b = floor(beta n) >= f
    krum           the reply with the smallest score, the sum of its squared distances to the
                   n - f - 2 replies nearest to it: n >= 2 f + 3
    multi-krum     the mean of the n - f - 2 replies with the smallest scores: n >= 2 f + 3

f is `federation.faulty`, beta `federation.trimmed`. With fewer replies, an
aggregation gives no protection, and the round fails.

Source: Yin, Chen, Ramchandran, Bartlett (ICML 2018, arXiv 1803.01498), definitions 1 and 2;
Blanchard, El Mhamdi, Guerraoui, Stainer (NeurIPS 2017, arXiv 1703.02757), section 4;
El Mhamdi, Guerraoui, Rouault (arXiv 1802.07927) for the number of replies that multi-krum averages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedapt.core.config import FederationConfig
from fedapt.core.errors import FederationError
from fedapt.training.client import ClientUpdate
from fedapt.training.methods.base import Learned


class Vote:
    """A round's aggregate that keeps all replies until the end. See `aggregate.Aggregation`.

    Args:
        start: the aggregate of the round before.
        config: kind of the aggregate, and number of wrong replies that it tolerates.
    """

    def __init__(self, start: Learned, config: FederationConfig) -> None:
        self._start, self._config = start, config
        self._replies: list[Learned] = []

    def add(self, update: ClientUpdate, slots: Mapping[str, int]) -> None:
        """Take one reply, whose tensors are all shared."""
        self._replies.append(update.learned)

    def result(self) -> Learned:
        """The aggregate.

        Raises:
            FederationError: too few replies to outvote the wrong ones.
        """
        config, n = self._config, len(self._replies)
        if needed := count_needed(config, n):
            raise FederationError(
                where=f"federation.aggregation = {config.aggregation!r}",
                found=f"{n} usable replies",
                expected=f"{needed} or more, with federation.faulty = {config.faulty}",
                next_step="check the nodes whose replies are missing, or lower federation.faulty",
            )
        # float64 [n, ...] by tensor
        values = {
            name: torch.stack([reply[name].double() for reply in self._replies])
            for name in self._start
        }
        if config.aggregation == "median":
            return {name: find_median(value).float() for name, value in values.items()}
        if config.aggregation == "trimmed-mean":
            count = count_trimmed(config.trimmed, n)
            return {name: trim_mean(value, count).float() for name, value in values.items()}
        scores = score_krum(measure_distances(values), config.faulty)
        kept = 1 if config.aggregation == "krum" else n - config.faulty - 2
        best = scores.argsort(stable=True)[:kept]
        return {name: value[best].mean(0).float() for name, value in values.items()}


def count_needed(config: FederationConfig, n: int) -> int:
    """Number of replies that the aggregate needs; 0 if `n` are enough."""
    faulty = config.faulty
    if config.aggregation == "median":
        needed = 2 * faulty + 1
    elif config.aggregation == "trimmed-mean":
        needed = math.ceil(faulty / config.trimmed - 1e-9)
    else:
        needed = 2 * faulty + 3
    return needed if n < needed else 0


def count_trimmed(share: float, n: int) -> int:
    """Number of replies that the trimmed mean of `n` drops at each end."""
    return math.floor(share * n + 1e-9)


def find_median(values: Tensor) -> Tensor:
    """Median over the first axis; the mean of the middle two for an even number."""
    ordered, n = values.sort(dim=0).values, len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def trim_mean(values: Tensor, count: int) -> Tensor:
    """Mean over the first axis without the `count` smallest and largest."""
    return values.sort(dim=0).values[count : len(values) - count].mean(0)


def measure_distances(values: Learned) -> Tensor:
    """Squared distances between replies, over all tensors: float64 [n, n].

    Args:
        values: float64 [n, ...] by tensor.
    """
    flat = [value.flatten(1) for value in values.values()]
    rows = [
        torch.stack([(value - value[i]).square().sum(1) for value in flat]).sum(0)
        for i in range(len(flat[0]))
    ]
    return torch.stack(rows)


def score_krum(distances: Tensor, faulty: int) -> Tensor:
    """Krum's scores, float64 [n], of squared distances [n, n]."""
    n = len(distances)
    # the smallest of a row is the reply's distance to itself
    nearest = distances.sort(dim=1).values[:, 1 : n - faulty - 1]
    return nearest.sum(1)
