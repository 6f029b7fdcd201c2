"""The runtime's errors.

    ReportedError               a problem that the user can fix; also the root of fedapt's own tree
    |- ParityError              exit 7: a graph or a TensorRT engine does not compute what it should
    `- RuntimeFailure           exit 8
       |- ModelFileError        the model file is missing, damaged, or of another schema
       |- ImageError            one image cannot be read; becomes a row, never stops a batch
       |- InputError            nothing to classify, or an array of the wrong shape
       |- OutputError           predictions cannot be written
       |- RequestError          the service refuses a request, with an HTTP status
       `- MissingDependency     exit 9: a package has to be installed

The command lines alone turn an error into an exit code.
"""

from __future__ import annotations

from typing import Any

from fedapt_runtime.printable import printable

EXIT_INTERRUPTED = 130


class ReportedError(Exception):
    """A problem with its place, what was found, what was expected, and the next step.

    Args:
        where: the file, folder, option or key at fault.
        found: the present value or state.
        expected: the valid value or state.
        next_step: the user's next step, as an imperative.
        shareable: whether another party may be told all of it: it names no file and no image.
    """

    exit_code = 1

    def __init__(
        self,
        *,
        where: object,
        found: str,
        expected: str,
        next_step: str,
        shareable: bool = False,
    ) -> None:
        self.where, self.found, self.shareable = str(where), found, shareable
        self.expected, self.next_step = expected, next_step
        text = f"{where}: found {found}; expected {expected}. To do: {next_step}."
        super().__init__(printable(text))

    def parts(self) -> dict[str, Any]:
        """The arguments that build an equal error; plain values for JSON."""
        names = ("where", "found", "expected", "next_step", "shareable")
        return {name: getattr(self, name) for name in names}

    def __reduce__(self) -> tuple[object, ...]:
        # workers pickle errors, and exceptions with keyword arguments need this to pickle
        return _rebuild, (type(self), self.parts())


def _rebuild(kind: type[ReportedError], parts: dict[str, Any]) -> ReportedError:
    return kind(**parts)


class ParityError(ReportedError):
    """A graph or a TensorRT engine does not compute what it should."""

    exit_code = 7


class RuntimeFailure(ReportedError):
    """Any error that prevents classification."""

    exit_code = 8


class ModelFileError(RuntimeFailure):
    """The model file is missing, damaged, not a fedapt model, or of a newer schema."""


class ImageError(RuntimeFailure):
    """One image cannot be read. In a batch it becomes a row with this error."""


class InputError(RuntimeFailure):
    """There is nothing to classify, or an array has the wrong shape or dtype."""


class OutputError(RuntimeFailure):
    """The predictions cannot be written."""


class RequestError(RuntimeFailure):
    """A request that the service refuses.

    Args:
        status: the HTTP status of the response.
        retry_after_s: seconds after which the same request may succeed; None if it never will.
        fields: see `ReportedError`.
    """

    def __init__(self, status: int, *, retry_after_s: int | None = None, **fields: Any) -> None:
        super().__init__(**fields)
        self.status, self.retry_after_s = status, retry_after_s

    def parts(self) -> dict[str, Any]:
        """See `ReportedError.parts`."""
        return super().parts() | {"status": self.status, "retry_after_s": self.retry_after_s}


class MissingDependency(RuntimeFailure):
    """A required package is not installed, or two packages exclude each other."""

    exit_code = 9


def first_line(error: Exception) -> str:
    """The first line of a library's error message, which may be long or empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
