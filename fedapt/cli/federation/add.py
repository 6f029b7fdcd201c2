"""`fedapt federation add`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedapt.cli.federation.init import read_node_name
from fedapt.cli.show import console_reporter


def add(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of `federation init`.")],
    node: Annotated[str, typer.Argument(metavar="DOMAIN|NAME=DOMAIN", help="The node to add.")],
    data: Annotated[
        str, typer.Option(help="ROOT of ROOT/<domain>/<class>/<images> on the node.")
    ] = "data",
) -> None:
    """Add a node to a deployment, also during training; a new domain gets its own key."""
    with console_reporter():
        from fedapt.federation.flower import require_flower

        require_flower()
        from fedapt.federation.flower.files import write_node
        from fedapt.run.deployment import read_deployment

        name, domain = read_node_name(node)
        server, config = read_deployment(folder / "server")
        secure = config.federation.secure
        write_node(folder, name, domain, server.address, data, secure=secure)
    print(f"written: {folder / 'nodes' / name}; copy it to its machine")
