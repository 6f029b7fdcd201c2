"""Translation of a library's exceptions, of any class, into errors of this project.

Decoders, archive readers and parsers raise many more exceptions than their documents list:
LZMAError, UnicodeDecodeError, RecursionError, struct.error. The checks therefore name no
exceptions: `translate` reports every exception inside its block as one error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedapt_runtime.errors import ReportedError, first_line


@contextmanager
def translate(
    kind: type[ReportedError], *, where: object, found: str, expected: str, next_step: str
) -> Iterator[None]:
    """Raise `kind` in place of any exception of a library inside the block.

    Args:
        kind: class of the error.
        where, expected, next_step: see `ReportedError`.
        found: the fault in a few words; the library's message follows in brackets.

    Raises:
        ReportedError: an error of class `kind`. A ReportedError from the block passes unchanged.
    """
    try:
        yield
    except ReportedError:
        raise
    except Exception as error:
        raise kind(
            where=where,
            found=f"{found} ({explain(error)})",
            expected=expected,
            next_step=next_step,
        ) from error


def explain(error: Exception) -> str:
    """A library's error in one line, with its type if the message alone is unclear."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text, name = first_line(error), type(error).__name__
    is_plain = type(error).__module__ == "builtins" and not isinstance(error, OSError)
    return f"{name}: {text}" if is_plain and text != name else text
