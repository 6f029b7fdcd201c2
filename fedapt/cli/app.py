"""`fedapt`: the app, and the one place where an error becomes an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

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
    report,
    settings,
    sums,
    swap_head,
    train,
    verify,
)
from fedapt.cli.options import name_options
from fedapt.cli.show import Interrupted
from fedapt_runtime.errors import EXIT_INTERRUPTED, ReportedError
from fedapt_runtime.streams import fail_stdout, open_standard_streams

app = typer.Typer(
    name="fedapt",
    help="Federated adaptive prompt tuning of CLIP: train, evaluate, export.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        print(fedapt.__version__)
        raise typer.Exit


app.command("train")(train.train)
app.command("compare")(compare.compare)
app.command("methods")(methods.methods)
app.command("settings")(settings.settings)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)
app.command("export")(export.export)
app.command("swap-head")(swap_head.swap_head)
app.command("verify")(verify.verify)
app.command("describe")(describe.describe)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.add_typer(data.app, name="data")
app.add_typer(sums.app, name="sums")
app.add_typer(federation.app, name="federation")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code (docs/errors.md).

    Args:
        arguments: the command line without the program's name; by default the process's own.
    """
    given = sys.argv[1:] if arguments is None else arguments
    open_standard_streams()
    try:
        code = _run(given)
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:
            raise
        # an error without a file name is one of stdout
        if (failure := fail_stdout(error)) is None:
            return 0
        print(f"error: {failure}", file=sys.stderr)
        return failure.exit_code
    return code


def _run(given: Sequence[str]) -> int:
    try:
        _build_command()(args=given)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except ReportedError as error:
        print(f"error: {_name_option(error, given)}", file=sys.stderr)
        return error.exit_code
    except Interrupted as stop:
        lines = ("interrupted: finished files are complete", str(stop))
        print("; ".join(filter(None, lines)), file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


@cache
def _build_command() -> Any:
    """The app as a command of click, built once in a process."""
    return typer.main.get_command(app)


def _name_option(error: ReportedError, arguments: Sequence[str]) -> str:
    """The error with the command's option where the library names a setting or a parameter."""
    if ("-o", error.where) in pairwise(arguments):
        return f"-o {error}"
    command = _build_command()
    for argument in arguments:
        command = getattr(command, "commands", {}).get(argument, command)
    options = {option for parameter in command.params for option in parameter.opts}
    return name_options(str(error), error.where, options)
