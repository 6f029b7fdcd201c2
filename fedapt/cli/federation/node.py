"""`fedapt federation node`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from fedapt.cli.show import console_reporter


def node(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with node.toml.")],
    data: Annotated[
        Path | None, typer.Option(help="ROOT of ROOT/<domain>/<class>/<images> on this machine.")
    ] = None,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for a server that does not answer.")
    ] = 60.0,
) -> None:
    """Take part with this machine's images until it is stopped."""
    with console_reporter() as reporter:
        from fedapt.federation.flower import require_flower

        require_flower()
        from fedapt.data.folders import scan_folders
        from fedapt.federation.flower.settings import read_node
        from fedapt.federation.flower.supernode import run_supernode

        settings = read_node(folder)
        if data is not None:
            settings = dataclasses.replace(settings, data=str(data.resolve()))
        # the folder is looked at before anyone is told that there is a node
        scan_folders(folder.resolve() / settings.data, domain=settings.domain)
        run_supernode(folder, settings, wait, reporter)
