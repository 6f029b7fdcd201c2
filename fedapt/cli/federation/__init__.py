"""`fedapt federation`: a server and nodes on machines of their own."""

from __future__ import annotations

import typer

from fedapt.cli.federation import add, init, node, server, train

app = typer.Typer(help="Train across machines, each with its own images.", no_args_is_help=True)
app.command("init")(init.init)
app.command("add")(add.add)
app.command("server")(server.server)
app.command("node")(node.node)
app.command("train")(train.train)
