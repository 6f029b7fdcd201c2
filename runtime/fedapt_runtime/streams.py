"""Standard streams that are closed, full, or have another encoding."""

from __future__ import annotations

import io
import os
import sys

from fedapt_runtime.errors import OutputError


def open_standard_streams() -> None:
    """Make sure that all three streams are open, and that stdout accepts any file name.

    A closed stream is replaced. Otherwise the next opened file would get its number, and a library
    that writes to stderr (number 2) would write into that file. Writing to the replaced stdout
    fails, and `fail_stdout` reports it. Messages for a closed stderr are dropped.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # JSON is UTF-8 in any locale, and a file name need not be valid text
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def fail_stdout(error: OSError) -> OutputError | None:
    """The error of a stdout that cannot be written; None if its reader has ended (`| head`)."""
    # otherwise the interpreter reports the same failure again when it exits
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return None
    return OutputError(
        where="stdout",
        found=error.strerror or str(error),
        expected="a stream that can be written",
        next_step="check the free space and the destination of the output",
    )
