"""`fedapt federation server`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedapt.cli.show import console_reporter


def server(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with server.toml.")],
) -> None:
    """Run the server until it is stopped: nodes connect to it, and `train` gives it work."""
    with console_reporter() as reporter:
        from fedapt.federation.flower import require_flower

        require_flower()
        from fedapt.federation.flower.settings import read_server
        from fedapt.federation.flower.superlink import run_superlink

        run_superlink(folder.resolve(), read_server(folder), reporter)
