"""`fedapt report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fedapt
from fedapt.cli.options import DeviceOption, JsonOption
from fedapt.cli.show import console_reporter, print_json


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, or a checkpoint in it.")],
    out: Annotated[
        Path | None, typer.Option(help="The page to write (default: report.html in the folder).")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="ROOT of ROOT/<domain>/<class>/<images>, or a table (default: the run's own)."
        ),
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option("--pictures", help="Show the worst mistakes: test images go into the page."),
    ] = False,
    license_id: Annotated[
        str, typer.Option("--license", help="License of the trained values, for the model card.")
    ] = "unknown",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Write a page with all figures of a run, and a model card beside it."""
    with console_reporter() as reporter:
        result = fedapt.load(run).report(
            out,
            data=data,
            pictures=pictures,
            license_id=license_id,
            device=device,
            reporter=reporter,
        )
    if as_json:
        print_json(result.to_dict())
