"""The rounds: clients train, the server aggregates, measures, records and saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedapt.core.config import Config
from fedapt.core.records import Record
from fedapt.core.report import Reporter
from fedapt.data.partition import ClientInfo
from fedapt.training.methods.base import Learned, Method
from fedapt.training.privacy import find_epsilon
from fedapt.training.sampling import sample_clients


@dataclass(frozen=True)
class RoundResult:
    """Result of a round.

    Attributes:
        learned: the aggregate of the clients' replies.
        loss: mean loss over their images.
        n_images: number of images of all clients.
        n_bytes: bytes sent to the clients and back.
        refused: client -> why its reply was not used.
        noise_multiplier: deviation of the round's noise over the sensitivity of what was released;
            None without noise.
        record: further fields of the round's record.
    """

    learned: Learned
    loss: float
    n_images: int
    n_bytes: int
    refused: Mapping[str, str] = field(default_factory=dict)
    noise_multiplier: float | None = None
    record: Record = field(default_factory=dict)


class Engine(Protocol):
    """Runs the clients of a round, in this process or in others, and aggregates their replies."""

    def run_round(
        self, start: Learned, clients: Sequence[ClientInfo], round_number: int
    ) -> RoundResult:
        """Train each of these clients from its share of `start`.

        Raises:
            FederationError: a reply or an aggregate that cannot be used.
        """
        ...


@dataclass(frozen=True)
class Progress:
    """The state of a run after `rounds` rounds, with one record for each."""

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
        """Whether the last `patience` evaluations (0: never) brought no improvement."""
        since = [r for r in self._validated if r["round"] > (self.best_round or 0)]
        return bool(patience) and len(since) >= patience

    @property
    def _validated(self) -> list[Record]:
        return [r for r in self.records if "mean_validation" in r]


@dataclass(frozen=True)
class Measured:
    """Accuracy of each domain, on test images and, if there are any, validation images.

    Attributes:
        n_bytes: bytes sent to the nodes that measure, and back.
        refused: client -> why its report was not used.
        routed: share of each trained domain's test images that are routed to it, of a method with
            keys whose images are here.
        calibration: expected calibration error of each domain's test images, where they are here.
    """

    test: dict[str, float]
    validation: dict[str, float]
    n_bytes: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)
    routed: Mapping[str, float] = field(default_factory=dict)
    calibration: Mapping[str, float] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """The fields of a record."""
        fields: dict[str, Any] = {"accuracy": self.test, "mean_accuracy": mean(self.test)}
        if self.validation:
            fields |= {"validation": self.validation, "mean_validation": mean(self.validation)}
        if self.n_bytes:
            fields["evaluation_bytes"] = self.n_bytes
        if self.routed:
            fields["routed"] = dict(self.routed)
        if self.calibration:
            fields["calibration_error"] = dict(self.calibration)
        return fields


# (learned tensors, number of the round from 0) -> accuracies
Measure = Callable[[Learned, int], Measured]


def mean(shares: dict[str, float]) -> float:
    """Mean over the domains; 0 without any."""
    return sum(shares.values()) / len(shares) if shares else 0.0


def run_rounds(
    engine: Engine,
    method: Method,
    start: Progress,
    config: Config,
    measure: Measure,
    save: Callable[[Progress], None],
    reporter: Reporter,
) -> Progress:
    """Train from `start` to the last round, or until validation accuracy stops improving.

    Args:
        measure: called every `train.evaluate_every` rounds and after the last. Validation images
            may stop training and choose a round. Test accuracy is only recorded.
        save: called after every round; a resumed run starts from the files that it wrote.

    Raises:
        FederationError: a reply or an aggregate that cannot be used; what was saved before stays.
    """
    train = config.train
    progress = start
    n_rounds = train.rounds if method.trains else 0
    while progress.rounds < n_rounds and not progress.has_stopped(train.patience):
        number = progress.rounds
        started = time.monotonic()
        clients = sample_clients(method.setting.clients, config.federation, train.seed, number)
        result = engine.run_round(progress.learned, clients, number)
        trained = time.monotonic()
        record: Record = {
            "round": number + 1,
            "loss": result.loss,
            "clients": len(clients),
            "seconds": round(trained - started, 4),
            "bytes_sent": result.n_bytes,
            **result.record,
        }
        refused = dict(result.refused)
        if result.noise_multiplier is not None:
            record["noise_multiplier"] = result.noise_multiplier
            spent = [r["noise_multiplier"] for r in (*progress.records, record)]
            record["epsilon"] = find_epsilon(spent, config.federation.delta)
        note = f"loss {record['loss']:.3f}"
        if (number + 1) % train.evaluate_every == 0 or number + 1 == n_rounds:
            measured = measure(result.learned, number)
            record |= measured.to_record()
            refused |= measured.refused
            record["evaluation_seconds"] = round(time.monotonic() - trained, 4)
            note += f", mean {100 * mean(measured.validation or measured.test):.1f} %"
        if refused:
            record["refused"] = refused
        progress = Progress(result.learned, number + 1, (*progress.records, record))
        save(progress)
        reporter.progress("rounds", number + 1, n_rounds, note)
    return progress
