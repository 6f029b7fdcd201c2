"""The event log of a server or node: one line for each event; library messages go to a file.

Text:  2026-11-27T08:15:00Z info round 3: berlin: 126 images, 0.5 MB, 1.2 s
JSON:  {"time": ..., "level": "info", "text": ..., "round": 3, "node": "berlin", "images": 126, ...}
"""

from __future__ import annotations

import logging
import logging.handlers
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from fedapt.core.report import Reporter
from fedapt_runtime.printable import printable, printable_json

FORMATS = ("text", "json")
# folder for the state of a process, beside server.toml or node.toml
STATE = "state"
_FILE_BYTES, _FILES = 2_000_000, 3


class EventLog(Reporter):
    """Writes every event at once, as one line.

    Args:
        format: one of `FORMATS`.
        stream: the output; by default standard error.
    """

    def __init__(self, format: str = "text", stream: TextIO | None = None) -> None:  # noqa: A002
        self._is_json, self._stream = format == "json", stream or sys.stderr
        self._lock = threading.Lock()  # a server reports rounds and nodes from several threads

    def message(self, text: str) -> None:
        """Write an event that has only a text."""
        self.event("info", text)

    def event(self, level: str, text: str, **values: Any) -> None:
        """Write one line.

        Args:
            level: `info`, `warning` or `error`.
            values: the facts of the text, for programs.
        """
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._is_json:
            line = printable_json({"time": now, "level": level, "text": text, **values})
        else:
            line = f"{now} {level} {printable(text)}"
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """Write a line when the task is complete."""
        if done == total:
            self.event("info", f"{task}: {total}" + (f", {note}" if note else ""))


def keep_library_logs(folder: Path) -> None:
    """Write the logs of libraries to `folder`/libraries.log, and none to the terminal."""
    folder.mkdir(mode=0o700, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(
        folder / "libraries.log", maxBytes=_FILE_BYTES, backupCount=_FILES
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.raiseExceptions = False  # with a full disk, logging must not print tracebacks
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    flower = logging.getLogger("flwr")  # it has its own handler, with colours
    flower.handlers.clear()
    flower.propagate = True
