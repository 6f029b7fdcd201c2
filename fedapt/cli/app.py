"""`fedapt`: the app, and the one place where an error becomes an exit code."""

from __future__ import annotations

import sys

import typer
from fedapt_runtime.errors import EXIT_INTERRUPTED, ReportedError

import fedapt
from fedapt.cli import data, demo, evaluate, export, train

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
app.command("evaluate")(evaluate.evaluate)
app.command("export")(export.export)
app.command("demo")(demo.demo)
app.add_typer(data.app, name="data")


def main() -> int:
    """Run a command and return its exit code (docs/errors.md)."""
    try:
        app()
    except SystemExit as stop:
        return int(stop.code or 0) if isinstance(stop.code, int | None) else 1
    except ReportedError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: finished files are whole; `train --resume` goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0
