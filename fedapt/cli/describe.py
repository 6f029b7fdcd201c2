"""`fedapt describe`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedapt.cli.options import JsonOption
from fedapt.cli.show import console_reporter, print_json, print_table


def describe(
    file: Annotated[Path, typer.Argument(help="A checkpoint, head, model or TensorRT engine.")],
    as_json: JsonOption = False,
) -> None:
    """Show a file's metadata."""
    with console_reporter():
        from fedapt_export.describe import describe as run_describe

        facts = run_describe(file)
    if as_json:
        print_json(facts)
        return
    rows = [[k, v if isinstance(v, str) else json.dumps(v, default=list)] for k, v in facts.items()]
    print_table(f"{facts['kind']} {file}", ["", ""], rows, figures=False)
