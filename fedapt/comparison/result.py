"""The result of a cell, and its file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fedapt.comparison.plan import Cell
from fedapt.training.evaluate import share_routed


@dataclass(frozen=True)
class CellResult:
    """Result of a cell.

    Attributes:
        accuracy, zero_shot: test accuracy of each domain in the chosen round.
        validation: mean accuracy on validation images in that round.
        best_round: the round that validation chose; the last one for a method that reads no labels.
        parameters: values that a client trains.
        share: share of all values of the CLIP.
        bytes_sent: bytes of each round, all clients, both ways.
        seconds: seconds of training, without evaluation.
        curve: (round, bytes sent until then, accuracy of each domain) of each evaluation.
        routing: domain -> key -> share of images; empty without keys.
        error: why there is no result, such as a loss that is not finite.
    """

    cell: Cell
    accuracy: dict[str, float] = dataclasses.field(default_factory=dict)
    zero_shot: dict[str, float] = dataclasses.field(default_factory=dict)
    validation: float = 0.0
    best_round: int = 0
    parameters: int = 0
    share: float = 0.0
    bytes_sent: float = 0.0
    seconds: float = 0.0
    curve: list[tuple[int, int, dict[str, float]]] = dataclasses.field(default_factory=list)
    routing: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    error: str = ""

    @property
    def routed(self) -> float | None:
        """Mean share of a trained domain's images that are routed to it; None without keys."""
        shares = [
            share_routed(domain, row)
            for domain, row in self.routing.items()
            if domain != self.cell.fold
        ]
        return fmean(shares) if shares else None

    @property
    def score(self) -> float:
        """The protocol's accuracy: that of the domain left out, or the mean over all."""
        if self.error:
            return 0.0
        fold = self.cell.fold
        return self.accuracy[fold] if fold else fmean(self.accuracy.values())


def read_result(path: Path, cell: Cell) -> CellResult | None:
    """A finished cell; None if it has to be run."""
    try:
        fields: dict[str, Any] = json.loads(path.read_text("utf-8"))
        fields["cell"] = Cell(**fields["cell"])
        fields["curve"] = [(number, sent, shares) for number, sent, shares in fields["curve"]]
        result = CellResult(**fields)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return result if result.cell == cell else None
