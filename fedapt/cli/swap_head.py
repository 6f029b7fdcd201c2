"""`fedapt swap-head`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedapt.cli.options import JsonOption
from fedapt.cli.show import console_reporter, print_json


def swap_head(
    model: Annotated[Path, typer.Argument(help="A model.onnx written by `fedapt export`.")],
    head: Annotated[Path, typer.Argument(help="A head written by `fedapt export --head-only`.")],
    out: Annotated[Path, typer.Option(help="The .onnx file to write; may be MODEL itself.")],
    as_json: JsonOption = False,
) -> None:
    """Replace the head of a fused model, such as after more rounds or with a new class."""
    with console_reporter():
        from fedapt_export.swap import swap_head as run_swap

        manifest = run_swap(model, head, out)
    if as_json:
        print_json({"classes": manifest.classes, "domains": manifest.domains})
    else:
        print(f"{out}: {len(manifest.classes)} classes, {len(manifest.domains)} domains")
