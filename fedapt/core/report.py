"""Progress and messages of long jobs, independent of the program that shows them."""

from __future__ import annotations

import sys
from typing import Any


class Reporter:
    """Takes messages and progress; this one drops them. The command line shows them.

    Examples:
        >>> class Printer(fedapt.Reporter):
        ...     def message(self, text: str) -> None:
        ...         print(text)
        >>> Printer().message("model: lite on cpu")
        model: lite on cpu
    """

    def message(self, text: str) -> None:
        """Report one line for the user."""

    def event(self, level: str, text: str, **values: Any) -> None:
        """Report an event; `values` holds the same facts as the text, for programs.

        Args:
            level: `info`, `warning` or `error`.
        """
        self.message(text)

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """Report that `task` has done `done` of `total`; `note` is a short figure."""


class PlainReporter(Reporter):
    """Writes messages to stderr, for service managers that collect them."""

    def message(self, text: str) -> None:
        """Write one line."""
        print(text, file=sys.stderr, flush=True)
