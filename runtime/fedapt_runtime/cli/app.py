"""The command line of `fedapt-runtime`: results on stdout or in --out, messages on stderr."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

import fedapt_runtime
from fedapt_runtime.cli.bench import add_bench
from fedapt_runtime.cli.check import add_check
from fedapt_runtime.cli.classify import add_classify
from fedapt_runtime.cli.describe import add_describe
from fedapt_runtime.cli.doctor import add_doctor
from fedapt_runtime.cli.messages import say
from fedapt_runtime.errors import EXIT_INTERRUPTED, ReportedError
from fedapt_runtime.journal import part_path
from fedapt_runtime.printable import printable
from fedapt_runtime.serve.command import add_serve
from fedapt_runtime.streams import fail_stdout, open_standard_streams


class _Parser(argparse.ArgumentParser):
    """Escapes its messages, which repeat arguments; a shell's pattern expands to any file name."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(printable(message or "", lines=True), file)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line with all its options."""
    parser = _Parser(
        prog="fedapt-runtime", description="Classify images with a fused fedapt model."
    )
    parser.add_argument("--version", action="version", version=fedapt_runtime.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (add_classify, add_bench, add_serve, add_check, add_describe, add_doctor):
        add(commands)
    return parser


def _name_options(text: str, options: argparse.Namespace) -> str:
    """An error's text with options, such as `--batch-size`, for parameters (`batch_size`)."""

    def name(found: re.Match[str]) -> str:
        return "--" + found[1].replace("_", "-") if hasattr(options, found[1]) else found[0]

    return re.sub(r"`(\w+)`", name, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2, 8, 9 or 130."""
    open_standard_streams()
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except ReportedError as error:
        say(f"error: {_name_options(str(error), options)}")
        return error.exit_code
    except KeyboardInterrupt:
        out: str | None = getattr(options, "out", None)
        note = "no output file was written"
        if out is not None and part_path(out).is_file():
            note = f"finished rows are in {part_path(out)}; continue with --resume"
        say(f"interrupted: {note}")
        return EXIT_INTERRUPTED
    except OSError as error:
        # other files report their errors as ReportedError, so this is stdout's
        if (failure := fail_stdout(error)) is not None:
            say(f"error: {failure}")
            return failure.exit_code
    return 0
