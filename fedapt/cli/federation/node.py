"""`fedapt federation node`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from fedapt.cli.federation.log import LogFormatOption, open_log
from fedapt_runtime.errors import EXIT_INTERRUPTED


def node(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with node.toml.")],
    data: Annotated[
        Path | None, typer.Option(help="ROOT of ROOT/<domain>/<class>/<images> on this machine.")
    ] = None,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for a server that does not answer.")
    ] = 60.0,
    log_format: LogFormatOption = "text",
) -> None:
    """Run a node with the images of this machine until Ctrl-C."""
    log = open_log(log_format)
    from fedapt.federation.flower import require_flower

    require_flower()
    from fedapt.data.folders import scan_folders
    from fedapt.federation.flower.event_log import STATE, keep_library_logs
    from fedapt.federation.flower.node_process import run_node
    from fedapt.federation.flower.settings import read_node

    settings = read_node(folder)
    if data is not None:
        settings = dataclasses.replace(settings, data=str(data.resolve()))
    # the folder is checked before the node contacts the server
    scan_folders(folder.resolve() / settings.data, domain=settings.domain)
    keep_library_logs(folder / STATE)
    try:
        run_node(folder, settings, wait, log)
    except KeyboardInterrupt:
        log.event("info", "stopped")
        raise typer.Exit(EXIT_INTERRUPTED) from None
