"""`fedapt federation server`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedapt.cli.federation.log import LogFormatOption, open_log


def server(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with server.toml.")],
    log_format: LogFormatOption = "text",
) -> None:
    """Run the server until Ctrl-C; nodes connect to it, and `train` starts runs."""
    log = open_log(log_format)
    from fedapt.federation.flower import require_flower

    require_flower()
    from fedapt.federation.flower.event_log import STATE, keep_library_logs
    from fedapt.federation.flower.network.grid import MailboxGrid
    from fedapt.federation.flower.server import run_server
    from fedapt.federation.flower.settings import read_server

    folder = folder.resolve()
    settings = read_server(folder)
    keep_library_logs(folder / STATE)

    def train(grid: MailboxGrid) -> None:
        from fedapt.run.deployment import serve  # imports torch, which nodes do not need here

        serve(grid, folder, log, grid.name_nodes)

    run_server(folder, settings, train, log)
