"""`fedapt verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedapt.cli.export import show_parity, show_verdict
from fedapt.cli.options import CheckpointArgument, JsonOption
from fedapt.cli.show import console_reporter, print_json


def verify(
    model: Annotated[Path, typer.Argument(help="A model.onnx written by `fedapt export`.")],
    checkpoint: CheckpointArgument,
    data: Annotated[
        Path | None, typer.Option(help="Images to compare on (default: those of the training run).")
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="Number of test images; 0 takes all.")] = 128,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Minimum share of images that keep their class.")
    ] = 0.98,
    as_json: JsonOption = False,
) -> None:
    """Verify on any images that a model computes the results of its checkpoint."""
    with console_reporter() as reporter:
        from fedapt_export.verify import verify as run_verify

        parity = run_verify(
            model,
            checkpoint,
            data=data,
            images=images,
            min_agreement=min_agreement,
            reporter=reporter,
        )
    if as_json:
        print_json(parity.to_dict())
    else:
        show_parity(parity)
        show_verdict(model, parity, min_agreement)
