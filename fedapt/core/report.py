"""How long work tells what it does, without knowing who listens."""

from __future__ import annotations


class Reporter:
    """Takes messages and progress; this one drops them. The command line shows them."""

    def message(self, text: str) -> None:
        """One line that the user should see."""

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """`task` has done `done` of `total`; `note` is a short figure to show beside it."""
