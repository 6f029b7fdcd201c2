"""Results -> rows of tables: mean and spread over the seeds; as CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from fedapt.comparison.plan import LEAVE_ONE_OUT
from fedapt.comparison.result import CellResult
from fedapt.comparison.run import Comparison
from fedapt.core.versions import software_versions
from fedapt.training.methods import METHODS

_COLUMNS = (
    "protocol left_out method lr chosen seed domain accuracy zero_shot validation best_round"
    " parameters bytes_per_round seconds error"
)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over the seeds; 0 for one seed."""

    mean: float
    std: float


@dataclass(frozen=True)
class Row:
    """One method under one protocol.

    Attributes:
        rates: learning rates that validation images chose, each once, rising.
        domains: test accuracy of each domain; under leave-one-out, of the domain left out.
        mean: mean over domains and over seeds that have every domain; None without any.
        rounds: the chosen round, mean over seeds.
        routed: share of the trained domains' images that are routed to their own; None without
            keys.
        errors: cells without a result.
    """

    protocol: str
    method: str
    title: str
    rates: tuple[float, ...]
    domains: dict[str, Spread]
    mean: Spread | None
    parameters: int
    share: float
    bytes_per_round: float
    seconds: float
    rounds: float
    routed: Spread | None
    errors: tuple[str, ...]


def build_rows(comparison: Comparison) -> list[Row]:
    """A row for each protocol and method, in the plan's order."""
    plan = comparison.plan
    return [
        _build_row(protocol, method, comparison.chosen_results(protocol, method))
        for protocol in plan.protocols
        for method in plan.methods
    ]


def _build_row(protocol: str, method: str, results: list[CellResult]) -> Row:
    good = [result for result in results if not result.error]
    by_domain: dict[str, dict[int, float]] = {}  # domain -> seed -> accuracy
    for result in good:
        for name, share in result.accuracy.items():
            if protocol != LEAVE_ONE_OUT or name == result.cell.fold:
                by_domain.setdefault(name, {})[result.cell.seed] = share
    # a mean without one of the folds is not comparable
    seeds = sorted({r.cell.seed for r in good} - {r.cell.seed for r in results if r.error})
    means = [fmean(shares[seed] for shares in by_domain.values()) for seed in seeds]
    first = good[0] if good else results[0]
    routed = [result.routed for result in good if result.routed is not None]
    return Row(
        protocol=protocol,
        method=method,
        title=METHODS[method].title,
        rates=tuple(sorted({result.cell.lr for result in results})),
        domains={name: spread(list(shares.values())) for name, shares in by_domain.items()},
        mean=spread(means) if means else None,
        parameters=first.parameters,
        share=first.share,
        bytes_per_round=fmean([r.bytes_sent for r in good] or [0.0]),
        seconds=fmean([r.seconds for r in good] or [0.0]),
        rounds=fmean([r.best_round for r in good] or [0]),
        routed=spread(routed) if routed else None,
        errors=tuple(result.error for result in results if result.error),
    )


def spread(values: list[float]) -> Spread:
    """Mean and sample standard deviation of one value or more."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else 0.0)


def show_rates(row: Row) -> str:
    """Learning rates as text, such as "0.03, 0.3"; empty without training."""
    return ", ".join(f"{lr:g}" for lr in row.rates) if row.parameters else ""


def to_csv(comparison: Comparison) -> str:
    """One line for each cell and domain."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS.split())
    chosen_cells = {cell for cells in comparison.chosen.values() for cell in cells}
    for cell, result in comparison.results.items():
        head = [cell.protocol, cell.fold, cell.method, f"{cell.lr:g}"]
        chosen = int(cell in chosen_cells)
        tail = [result.best_round, result.parameters, f"{result.bytes_sent:.0f}"]
        for domain in result.accuracy or [""]:
            shares = [result.accuracy.get(domain), result.zero_shot.get(domain), result.validation]
            texts = ["" if share is None else f"{share:.6f}" for share in shares]
            row = [*head, chosen, cell.seed, domain, *texts, *tail, f"{result.seconds:.2f}"]
            writer.writerow([*row, result.error])
    return stream.getvalue()


def to_json(comparison: Comparison, rows: list[Row], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything: the plan, the settings, the rows, each cell."""
    return {
        "plan": dataclasses.asdict(comparison.plan),
        "settings": settings,
        "versions": software_versions(),
        "rows": [dataclasses.asdict(row) for row in rows],
        "cells": [dataclasses.asdict(result) for result in comparison.results.values()],
    }
