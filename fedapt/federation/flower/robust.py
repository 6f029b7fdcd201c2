"""Aggregates that outvote, shorten or blur what a client sends, from Flower's own strategies.

    trimmed-mean, median   per value (arXiv 1803.01498)
    krum                   the one reply that is nearest to the others (arXiv 1703.02757)
    clip                   updates longer than C are scaled down to C
    noise                  with clip: N(0, (z C / n)^2) on the mean of n updates (arXiv 1710.06963)

Noise is drawn from the operating system's randomness, never from the run's seed, which every node
knows: a run with noise is the one thing here that cannot be repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    Strategy,
)
from flwr.supercore.differential_privacy import compute_clip_model_update

from fedapt.core.config import FederationConfig
from fedapt.core.errors import FederationError
from fedapt.core.records import Record
from fedapt.federation.flower.tensors import from_arrays, to_arrays
from fedapt.train.client import ClientUpdate
from fedapt.train.methods.base import Learned
from fedapt.train.privacy import find_epsilon

_WEIGHT, _ARRAYS, _METRICS = "weight", "arrays", "metrics"


class Robust:
    """A round's aggregate. See `train.aggregate.Aggregation`.

    Args:
        config: which aggregate.
        weighting: `uniform` or `samples`, of a mean.
    """

    def __init__(self, config: FederationConfig, weighting: str) -> None:
        self._config, self._weighting = config, weighting
        self._replies: list[tuple[ClientUpdate, Mapping[str, int]]] = []
        logging.getLogger("flwr").setLevel(logging.WARNING)  # a line for each reply

    def add(self, update: ClientUpdate, slots: Mapping[str, int]) -> None:
        """Take one reply."""
        self._replies.append((update, slots))

    def result(self, start: Learned) -> Learned:
        """The aggregate; what no client of the round owns stays as it is.

        Raises:
            FederationError: too few replies for this aggregate.
        """
        learned = dict(start)
        for names, slots, updates in self._group():
            part = {n: start[n][slots[n]] if n in slots else start[n] for n in names}
            found = self._aggregate(part, updates)
            for name, tensor in found.items():
                if name in slots:
                    if learned[name] is start[name]:
                        learned[name] = start[name].clone()
                    learned[name][slots[name]] = tensor
                else:
                    learned[name] = tensor
        return learned

    def describe(self, rounds: int) -> Record:
        """What has been given away of each client's images after `rounds` rounds like this one."""
        if not self._config.noise:
            return {}
        return {"epsilon": find_epsilon([self._config.noise] * rounds, self._config.delta)}

    def _group(
        self,
    ) -> list[tuple[tuple[str, ...], Mapping[str, int], list[ClientUpdate]]]:
        """Tensors that the same clients have sent: those of all, and each owner's slices."""
        groups: dict[tuple[tuple[str, int | None], ...], list[ClientUpdate]] = {}
        for update, slots in self._replies:
            shared = tuple((name, None) for name in update.learned if name not in slots)
            owned = tuple((name, slots[name]) for name in update.learned if name in slots)
            for key in filter(None, (shared, owned)):
                groups.setdefault(key, []).append(update)
        return [
            (tuple(name for name, _ in key), {n: i for n, i in key if i is not None}, updates)
            for key, updates in groups.items()
        ]

    def _aggregate(self, start: Learned, updates: Sequence[ClientUpdate]) -> Learned:
        config = self._config
        strategy = self._choose(len(updates))
        if config.noise:
            private = DifferentialPrivacyServerSideFixedClipping(
                strategy, config.noise, config.clip, len(updates)
            )
            private.current_arrays = to_arrays(start)
            strategy = private
        messages = [self._to_message(u, start, clip=not config.noise) for u in updates]
        arrays, _ = strategy.aggregate_train(1, messages)
        if arrays is None:
            raise FederationError(
                where=f"federation.aggregation = {config.aggregation!r}",
                found=f"{len(updates)} replies that Flower cannot aggregate",
                expected="an aggregate",
                next_step="see Flower's own messages above",
            )
        device = next(iter(start.values())).device
        return {name: t.float() for name, t in from_arrays(arrays, device).items()}

    def _choose(self, n_replies: int) -> Strategy:
        config = self._config
        if config.aggregation == "krum":
            if n_replies < config.faulty + 3:
                raise FederationError(
                    where="federation.aggregation = 'krum'",
                    found=f"{n_replies} replies",
                    expected=f"at least {config.faulty + 3} (federation.faulty = {config.faulty})",
                    next_step="lower federation.faulty, or take the median",
                )
            return Krum(num_malicious_nodes=config.faulty, weighted_by_key=_WEIGHT)
        if config.aggregation == "median":
            return FedMedian(weighted_by_key=_WEIGHT)
        if config.aggregation == "trimmed-mean":
            return FedTrimmedAvg(beta=config.trimmed, weighted_by_key=_WEIGHT)
        return FedAvg(weighted_by_key=_WEIGHT)

    def _to_message(self, update: ClientUpdate, start: Learned, *, clip: bool) -> Message:
        """A reply as Flower's strategies take it."""
        arrays = to_arrays({name: update.learned[name] for name in start})
        if clip and self._config.clip:
            sent = [tensor.cpu().numpy() for tensor in start.values()]
            found = arrays.to_numpy_ndarrays()
            if any((a != b).any() for a, b in zip(found, sent, strict=True)):
                compute_clip_model_update(found, sent, self._config.clip)
            arrays = ArrayRecord(
                {name: Array(value) for name, value in zip(start, found, strict=True)}
            )
        weight = float(update.n_samples) if self._weighting == "samples" else 1.0
        content = RecordDict({_ARRAYS: arrays, _METRICS: MetricRecord({_WEIGHT: weight})})
        return make_message(_NOWHERE, content)


# these messages are sent to nobody
_NOWHERE = Metadata(
    run_id=0,
    message_id="",
    src_node_id=0,
    dst_node_id=0,
    reply_to_message_id="",
    group_id="",
    created_at=0.0,
    ttl=1.0,
    message_type="train",
)
