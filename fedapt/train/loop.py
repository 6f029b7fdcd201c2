"""The rounds: clients train, the server averages, measures, records and saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fedapt.core.config import Config
from fedapt.core.records import Record
from fedapt.core.report import Reporter
from fedapt.data.partition import Client
from fedapt.train.aggregate import Aggregation, begin_aggregate
from fedapt.train.client import ClientUpdate
from fedapt.train.methods.base import Learned, Method, n_bytes
from fedapt.train.sampling import sample_clients


class Engine(Protocol):
    """Who runs the clients of a round: this process, or others."""

    def train_round(
        self, start: Learned, clients: Sequence[Client], round_number: int
    ) -> Iterable[ClientUpdate]:
        """Each of these clients trains from its share of `start`; replies in a fixed order."""
        ...

    def describe_round(self, earlier: Sequence[Record]) -> Record:
        """What else the record of the round should say, when it has been measured.

        Args:
            earlier: the records of the rounds before.
        """
        ...


@dataclass(frozen=True)
class Progress:
    """Where a run stands: what is learned after `rounds` rounds, with one record for each."""

    learned: Learned
    rounds: int
    records: tuple[Record, ...]

    @property
    def best_round(self) -> int | None:
        """The earliest round with the best mean validation accuracy; None without validation."""
        scores = [(r["mean_validation"], -r["round"]) for r in self._validated]
        return -max(scores)[1] if scores else None

    @property
    def is_best(self) -> bool:
        """Whether no earlier round is as good."""
        return self.best_round == self.rounds

    def has_stopped(self, patience: int) -> bool:
        """Whether the last `patience` evaluations (0: never) brought nothing better."""
        since = [r for r in self._validated if r["round"] > (self.best_round or 0)]
        return bool(patience) and len(since) >= patience

    @property
    def _validated(self) -> list[Record]:
        return [r for r in self.records if "mean_validation" in r]


@dataclass(frozen=True)
class Measured:
    """Accuracy of each domain; of validation images, where there are any, and of test images."""

    test: dict[str, float]
    validation: dict[str, float]

    def to_record(self) -> dict[str, Any]:
        """The fields of a record."""
        fields: dict[str, Any] = {"accuracy": self.test, "mean_accuracy": mean(self.test)}
        if self.validation:
            fields |= {"validation": self.validation, "mean_validation": mean(self.validation)}
        return fields


def mean(shares: dict[str, float]) -> float:
    """Mean over the domains; 0 without any."""
    return sum(shares.values()) / len(shares) if shares else 0.0


def run_rounds(
    engine: Engine,
    method: Method,
    start: Progress,
    config: Config,
    measure: Callable[[Learned], Measured],
    save: Callable[[Progress], None],
    reporter: Reporter,
    aggregation: Callable[[], Aggregation] | None = None,
) -> Progress:
    """Train from `start` to the last round, or until validation accuracy has stopped to rise.

    Args:
        measure: called every `train.evaluate_every` rounds and after the last. Validation images
            may stop training and choose a round; test accuracy is recorded, and chooses nothing.
        save: called after every round; what it has written is what a resumed run starts from.
        aggregation: begins a round's aggregate; by default the mean.

    Raises:
        FederationError: a client's reply is not finite; what was saved before stays.
    """
    train = config.train
    progress = start
    n_rounds = train.rounds if method.trains else 0
    while progress.rounds < n_rounds and not progress.has_stopped(train.patience):
        number = progress.rounds
        started = time.monotonic()
        clients = sample_clients(method.setting.clients, config.federation, train.seed, number)
        aggregate = aggregation() if aggregation else begin_aggregate(method, train.weighting)
        n_images, loss = 0, 0.0
        for update in engine.train_round(progress.learned, clients, number):
            aggregate.add(update, method.slots(method.setting.clients[update.client]))
            n_images += update.n_samples
            loss += update.loss * update.n_samples
        learned = aggregate.result(progress.learned)
        trained = time.monotonic()
        sent = [n_bytes(method.share(learned, client)) for client in clients]
        record: Record = {
            "round": number + 1,
            "loss": loss / max(1, n_images),
            "clients": len(clients),
            "seconds": round(trained - started, 4),
            # each client receives what is learned and sends it back
            "bytes_sent": 2 * sum(sent) if method.sends else 0,
        }
        note = f"loss {record['loss']:.3f}"
        if (number + 1) % train.evaluate_every == 0 or number + 1 == n_rounds:
            measured = measure(learned)
            record |= measured.to_record()
            record["evaluation_seconds"] = round(time.monotonic() - trained, 4)
            note += f", mean {100 * mean(measured.validation or measured.test):.1f} %"
        record |= engine.describe_round(progress.records) | aggregate.describe(number + 1)
        progress = Progress(learned, number + 1, (*progress.records, record))
        save(progress)
        reporter.progress("rounds", number + 1, n_rounds, note)
    return progress
