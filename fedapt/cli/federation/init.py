"""`fedapt federation init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedapt.cli.options import JsonOption
from fedapt.cli.show import console_reporter, print_json
from fedapt.core.config import read_config
from fedapt.core.errors import UsageError


def read_node_name(text: str) -> tuple[str, str]:
    """NAME=DOMAIN, or a DOMAIN that is the name too."""
    name, _, domain = text.partition("=")
    return name, domain or name


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet.")
    ],
    server: Annotated[str, typer.Option(help="HOST:PORT of the server, as nodes reach it.")],
    node: Annotated[
        list[str], typer.Option(metavar="DOMAIN|NAME=DOMAIN", help="A node; repeat for each node.")
    ],
    classes: Annotated[
        str,
        typer.Option(
            "--classes",
            help="Class names in order, separated by commas; quote a name that has a comma.",
        ),
    ],
    data: Annotated[
        str, typer.Option(help="ROOT of ROOT/<domain>/<class>/<images> on every node.")
    ] = "data",
    config: Annotated[Path | None, typer.Option(help="A TOML file with settings.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("-o", metavar="KEY=VALUE", help="Set section.key=value.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a deployment: settings, certificates, keys, a compose file and the commands."""
    nodes = dict(map(read_node_name, node))
    if folder.exists() or len(nodes) < len(node):
        raise UsageError(
            where=folder if folder.exists() else "--node",
            found="a folder or file" if folder.exists() else "two nodes of the same name",
            expected="a new folder" if folder.exists() else "a different name for each node",
            next_step="choose another folder" if folder.exists() else "rename one of the nodes",
        )
    settings = read_config(config, override or ())
    with console_reporter():
        from fedapt.data.class_names import split_class_names
        from fedapt.federation.flower import require_flower

        require_flower()
        from fedapt.federation.flower.files import Deployment, write_deployment
        from fedapt.run.deployment import resolve_deployment

        resolve_deployment(settings)  # what `federation train` would refuse is refused here
        names = split_class_names(classes)
        write_deployment(folder, Deployment(server, names, nodes, data, settings))
    if as_json:
        print_json({"folder": str(folder), "nodes": nodes})
    else:
        print(f"written: {folder / 'README.md'} has the commands")
