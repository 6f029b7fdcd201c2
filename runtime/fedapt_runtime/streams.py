"""Standard streams that are closed, full, or of another encoding."""

from __future__ import annotations

import io
import os
import sys

from fedapt_runtime.errors import OutputError


def open_standard_streams() -> None:
    """Make sure that all three streams are open, and that stdout accepts any file name.

    A closed one is replaced: otherwise the next file that is opened gets its number, and what a
    library writes to number 2 would end up in it. Nothing can be written to the replaced stdout,
    which `fail_stdout` tells; messages for a closed stderr are dropped.
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
        # JSON is UTF-8 whatever the locale, and a file name need not be valid text
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def fail_stdout(error: OSError) -> OutputError | None:
    """Error of a stdout that cannot be written; None if its reader has ended (`| head`)."""
    # keeps the interpreter from complaining about it again at its end
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return None
    return OutputError(
        where="stdout",
        found=error.strerror or str(error),
        expected="a stream that can be written",
        next_step="check the free space and the destination of the output",
    )
