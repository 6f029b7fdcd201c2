"""Lines on stdout and stderr. They are escaped, because they may contain untrusted names."""

from __future__ import annotations

import sys

from fedapt_runtime.printable import printable


def say(text: str) -> None:
    """Print a message on stderr."""
    print(printable(text), file=sys.stderr)


def show(text: str) -> None:
    """Print a line of a result on stdout."""
    print(printable(text))
