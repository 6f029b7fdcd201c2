"""The rounds: clients train, the server averages, measures, records and saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedapt.core.config import TrainConfig
from fedapt.core.records import Record
from fedapt.core.report import Reporter
from fedapt.train.aggregate import average
from fedapt.train.client import ClientUpdate, Learned


class Engine(Protocol):
    """Who runs the clients of a round: this process, or others."""

    def train_round(self, start: Learned, round_number: int) -> Sequence[ClientUpdate]:
        """Every client of the round trains from `start`; replies in the order of the clients."""
        ...


@dataclass(frozen=True)
class Progress:
    """Where a run stands: V and Q after `rounds` rounds, with one record for each."""

    learned: Learned
    rounds: int
    records: tuple[Record, ...]


def run_rounds(
    engine: Engine,
    start: Progress,
    config: TrainConfig,
    measure: Callable[[Learned], dict[str, float]],
    save: Callable[[Progress], None],
    reporter: Reporter,
) -> Progress:
    """Train from `start` to the last round.

    Args:
        measure: test accuracy of each domain; recorded, and never used to choose anything.
        save: called after every round; what it has written is what a resumed run starts from.
    """
    progress = start
    for round_number in range(start.rounds, config.rounds):
        started = time.monotonic()
        updates = engine.train_round(progress.learned, round_number)
        learned = average(updates, config.weighting)
        trained = time.monotonic()
        accuracy = measure(learned)
        n_images = sum(u.n_samples for u in updates)
        loss = sum(u.loss * u.n_samples for u in updates) / n_images
        mean = sum(accuracy.values()) / len(accuracy) if accuracy else 0.0
        record: Record = {
            "round": round_number + 1,
            "loss": loss,
            "accuracy": accuracy,
            "mean_accuracy": mean,
            "seconds": round(trained - started, 4),
            "evaluation_seconds": round(time.monotonic() - trained, 4),
            # each client receives V and Q and sends them back
            "bytes_sent": 2 * len(updates) * learned.n_bytes,
        }
        progress = Progress(learned, round_number + 1, (*progress.records, record))
        save(progress)
        reporter.progress(
            "rounds", round_number + 1, config.rounds, f"loss {loss:.3f}, mean {100 * mean:.1f} %"
        )
    return progress
