"""`fedapt evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import fedapt
from fedapt.cli.options import CheckpointArgument, DeviceOption, JsonOption
from fedapt.cli.show import console_reporter, percent, print_json, print_table

if TYPE_CHECKING:
    from fedapt.training.evaluate import Evaluation


def evaluate(
    checkpoint: CheckpointArgument,
    data: Annotated[
        Path | None,
        typer.Option(
            help="ROOT of ROOT/<domain>/<class>/<images>, or a table (default: the run's own)."
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Encode the prompts of every image: exact and slow.")
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure a checkpoint and zero-shot CLIP on the test images of each domain."""
    with console_reporter() as reporter:
        run = fedapt.Run(checkpoint)
        evaluation = run.evaluate(data, exact=exact, device=device, reporter=reporter)
    if as_json:
        print_json(evaluation.to_dict())
    else:
        show_evaluation(evaluation, str(checkpoint))


def show_evaluation(evaluation: Evaluation, title: str) -> None:
    """Print two tables: results by domain, and the routing of each domain's images."""
    domains = evaluation.domains
    columns: dict[str, Mapping[str, float]] = {
        evaluation.title: {name: result.accuracy for name, result in domains.items()},
        "zero-shot": {name: result.zero_shot for name, result in domains.items()},
    }
    if evaluation.calibration:  # none where other machines measured
        columns["calibration error"] = evaluation.calibration
    if evaluation.routed:
        columns["routed to own"] = evaluation.routed
    parts = {name: [name] if result.n else [] for name, result in domains.items()}
    parts["mean"] = [name for name, result in domains.items() if result.n]
    rows = [
        [
            row,
            *(
                _show_mean([shares[name] for name in names if name in shares], names)
                for shares in columns.values()
            ),
            str(sum(domains[name].n for name in names)),
        ]
        for row, names in parts.items()
    ]
    print_table(f"Accuracy, % ({title})", ["domain", *columns, "images"], rows)
    if not evaluation.routing:
        return
    keys = list(next(iter(evaluation.routing.values())))
    print_table(
        "Routing: % of a domain's images that are routed to each key",
        ["domain", *keys],
        [
            [name, *_percents(evaluation.domains[name].n, *shares.values())]
            for name, shares in evaluation.routing.items()
        ],
    )


def _show_mean(shares: list[float], tested: list[str]) -> str:
    """A mean over domains; a dash without test images, empty if the column has no values."""
    if not tested:
        return "-"
    return percent(sum(shares) / len(shares)) if shares else ""


def _percents(n_images: int, *shares: float) -> list[str]:
    """Shares in percent; a dash if there are no images."""
    return [percent(share) if n_images else "-" for share in shares]
