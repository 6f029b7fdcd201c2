"""`--log-format` of the commands that run for days."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fedapt.core.errors import UsageError

if TYPE_CHECKING:
    from fedapt.federation.flower.event_log import EventLog

LogFormatOption = Annotated[
    str, typer.Option("--log-format", metavar="text|json", help="One line per event, on stderr.")
]


def open_log(log_format: str) -> EventLog:
    """A log on standard error.

    Raises:
        UsageError: an unknown format.
    """
    from fedapt.federation.flower.event_log import FORMATS, EventLog

    if log_format not in FORMATS:
        raise UsageError(
            where="--log-format",
            found=repr(log_format),
            expected=" or ".join(FORMATS),
            next_step="check the spelling",
        )
    return EventLog(log_format)
