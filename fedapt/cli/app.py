"""`fedapt`: the app, and the one place where an error becomes an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

import fedapt
from fedapt.cli import (
    compare,
    data,
    demo,
    describe,
    doctor,
    evaluate,
    export,
    federation,
    methods,
    swap_head,
    train,
    verify,
)
from fedapt.cli.show import Interrupted
from fedapt_runtime.errors import EXIT_INTERRUPTED, ReportedError

app = typer.Typer(
    name="fedapt",
    help="Federated adaptive prompt tuning of CLIP: train, evaluate, export.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        print(fedapt.__version__)
        raise typer.Exit


app.command("train")(train.train)
app.command("compare")(compare.compare)
app.command("methods")(methods.methods)
app.command("evaluate")(evaluate.evaluate)
app.command("export")(export.export)
app.command("swap-head")(swap_head.swap_head)
app.command("verify")(verify.verify)
app.command("describe")(describe.describe)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.add_typer(data.app, name="data")
app.add_typer(federation.app, name="federation")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code (docs/errors.md).

    Args:
        arguments: the command line without the program's name; by default the process's own.
    """
    try:
        app(args=arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except ReportedError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Interrupted:
        print("interrupted: finished files are whole; `train --resume` goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0
