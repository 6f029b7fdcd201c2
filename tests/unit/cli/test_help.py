"""The help of every command says all that was written for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from rich.text import Text

from fedapt.cli.app import app


def walk_options(command: Any, path: str = "fedapt") -> Iterator[tuple[str, str]]:
    """Every option and argument of a command and of those below it, with its help."""
    for option in command.params:
        yield f"{path} {option.name}", getattr(option, "help", None) or ""
    for name, below in getattr(command, "commands", {}).items():
        yield from walk_options(below, f"{path} {name}")


def loses_words(text: str) -> bool:
    """Rich, which prints the help, reads a word in square brackets as a style."""
    return Text.from_markup(text).plain != text


def test_no_help_loses_words() -> None:
    options = dict(walk_options(typer.main.get_command(app)))
    assert len(options) > 80
    assert options["fedapt export head_only"] == "Write the head only, without the image tower."
    assert options["fedapt federation train wait"].startswith("Seconds to wait for a server")
    assert [name for name, text in options.items() if loses_words(text)] == []


def test_the_check_above_can_fail() -> None:
    assert loses_words("Images for the reports [those of the training run].")
    assert not loses_words("Images for the reports (those of the training run).")
