"""`records.jsonl`: one JSON object per round, for people, plots and trackers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedapt.core.errors import FileError
from fedapt.core.files import write_text

Record = dict[str, Any]


def write_records(path: Path, records: list[Record]) -> None:
    """Write all records again, so that the file is complete at any moment.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def read_records(path: Path) -> list[Record]:
    """Read all records; none if the file does not exist.

    Raises:
        FileError: a line is not a JSON object.
    """
    if not path.is_file():
        return []
    records = []
    # bytes: in text, a name with U+2028 would end a line
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):  # brackets without end
            record = None
        if not isinstance(record, dict):
            raise FileError(
                where=f"{path}, line {number}",
                found=repr(line[:60].decode("utf-8", "replace")),
                expected="a JSON object",
                next_step="remove the damaged line, or train into another folder",
            )
        records.append(record)
    return records
