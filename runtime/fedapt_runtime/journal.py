"""The rows of an unfinished job, in `OUT.part`: a header, then a JSON line for each row.

A complete job writes the output from these rows, so the output is complete or absent. A stopped job
resumes after its last complete row.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fedapt_runtime.destination import Destination, local_path
from fedapt_runtime.errors import InputError

_FLUSH_S = 1.0  # a killed process loses at most the rows of this time


def part_path(out: Destination) -> Path:
    """The path of the journal for an output; the working folder holds that of a remote output."""
    path = local_path(out)
    return path.with_name(path.name + ".part")


class Journal:
    """Rows on disk, in order.

    Attributes:
        path: path of the file.
        batch_size: batch size of the job that started the journal.
        n_rows: number of written rows.
    """

    def __init__(self, path: Path, stream: BinaryIO, batch_size: int, n_rows: int) -> None:
        self.path, self.batch_size, self.n_rows = path, batch_size, n_rows
        self._stream = stream
        self._flushed = time.monotonic()

    @classmethod
    def open(
        cls,
        out: Destination,
        job: dict[str, Any],
        batch_size: int,
        resume: bool,
        ran_on: dict[str, str] | None = None,
    ) -> Journal:
        """Start a new journal, or continue after the last complete row.

        Args:
            out: the output of the job.
            job: identity of the job, plain values for JSON; rows of another job are refused.
            batch_size: batch size of a new journal; an existing journal keeps its own.
            resume: continue an existing journal; else it is replaced.
            ran_on: backend and compute precision of a new journal, see `read_ran_on`.

        Raises:
            InputError: the existing rows belong to another job.
            OSError: the folder is missing or not writable, or the disk is full.
        """
        path = part_path(out)
        if resume and path.is_file():
            return cls._go_on(path, job)
        stream = path.open("wb")
        stream.write(_encode({"job": job, "batch_size": batch_size, "ran_on": ran_on or {}}))
        return cls(path, stream, batch_size, 0)

    @classmethod
    def _go_on(cls, path: Path, job: dict[str, Any]) -> Journal:
        stream = path.open("r+b")
        try:
            batch_size = _read_header(stream.readline(), job)
            if batch_size is None:
                raise InputError(
                    where=path,
                    found="rows of another job",
                    expected="the same model, head and options",
                    next_step="repeat the command that started the job, or omit `resume`",
                )
            n_rows, end = 0, stream.tell()
            for line in stream:
                if not line.endswith(b"\n"):
                    break  # the process was killed while it wrote this row
                n_rows, end = n_rows + 1, end + len(line)
            stream.seek(end)
            stream.truncate()
        except BaseException:
            stream.close()
            raise
        return cls(path, stream, batch_size, n_rows)

    def keep(self, n_rows: int) -> None:
        """Remove all rows except the first ones."""
        end = 0
        self._stream.flush()
        with self.path.open("rb") as stream:
            for _ in range(1 + n_rows):  # the header is a line too
                end += len(stream.readline())
        self._stream.seek(end)
        self._stream.truncate()
        self.n_rows = n_rows

    def write(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self._stream.write(_encode(row))
        self.n_rows += 1
        if time.monotonic() - self._flushed > _FLUSH_S:
            self._stream.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write the buffered rows; remove a journal without rows."""
        try:
            self._stream.close()
        finally:
            if not self.n_rows:
                self.path.unlink(missing_ok=True)

    def lines(self) -> Iterator[bytes]:
        """Yield the written rows as JSON lines, each with its line break."""
        self._stream.flush()
        with self.path.open("rb") as stream:
            stream.readline()
            yield from stream

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the written rows."""
        for line in self.lines():
            row: dict[str, Any] = json.loads(line.decode("utf-8", "surrogateescape"))
            yield row

    def remove(self) -> None:
        """Remove the journal after the output is written."""
        self._stream.close()
        os.unlink(self.path)


def _encode(value: dict[str, Any]) -> bytes:
    # surrogateescape restores the bytes of file names that are not valid UTF-8
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")


def read_ran_on(out: Destination) -> dict[str, str]:
    """`backend` and `compute` of an unfinished job; empty if unknown.

    Rows of another backend differ by rounding, so a resumed job uses the backend that started it.
    """
    try:
        with part_path(out).open("rb") as stream:
            found = json.loads(stream.readline().decode("utf-8", "surrogateescape"))["ran_on"]
        return {name: str(found[name]) for name in ("backend", "compute")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _read_header(line: bytes, job: dict[str, Any]) -> int | None:
    """The batch size in the header of this job; None if the header is of another job or damaged."""
    try:
        header: Any = json.loads(line.decode("utf-8", "surrogateescape"))
        batch_size = header["batch_size"]
        is_same = header["job"] == job and type(batch_size) is int and batch_size > 0
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return batch_size if is_same else None
