"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

CheckpointArgument = Annotated[
    Path, typer.Argument(help="A checkpoint.safetensors written by `fedapt train`.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def resolve_name(name: str | None) -> str | None:
    """A folder or file by its full path, so that the checkpoint finds it from anywhere."""
    is_path = name is not None and os.sep in name and Path(name).exists()
    return str(Path(name).resolve()) if name is not None and is_path else name
