"""`fedapt evaluate`."""

from __future__ import annotations

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
    """Two tables: accuracy per domain, and which key each domain's images took."""
    routed = evaluation.routed
    rows = [
        [name, *_percents(r.n, r.accuracy, r.zero_shot), str(r.n)]
        + ([percent(routed[name]) if name in routed else ""] if routed else [])
        for name, r in evaluation.domains.items()
    ]
    n_images = sum(r.n for r in evaluation.domains.values())
    means = _percents(n_images, evaluation.mean, evaluation.zero_shot_mean)
    mean = ["mean", *means, str(n_images)]
    columns = ["domain", evaluation.title, "zero-shot", "images"]
    if routed:
        mean.append(percent(sum(routed.values()) / len(routed)))
        columns.append("routed to own")
    print_table(f"Accuracy, % ({title})", columns, [*rows, mean])
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


def _percents(n_images: int, *shares: float) -> list[str]:
    """Shares of some images; a dash where there is no image that they could be of."""
    return [percent(share) if n_images else "-" for share in shares]
