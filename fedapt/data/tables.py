"""Images listed in a table: CSV or Parquet with the columns `path`, `class` and `domain`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedapt.core.errors import DataError, DependencyError
from fedapt_runtime.text import decode_text

COLUMNS = ("path", "class", "domain")
_SUFFIXES = (".csv", ".parquet")


def is_table(root: Path) -> bool:
    """Whether a root of images is a table, by its suffix."""
    return root.suffix.lower() in _SUFFIXES and not root.is_dir()


def read_table(path: Path) -> dict[str, dict[str, list[str]]]:
    """The images of a table: domain -> class -> paths.

    Args:
        path: the table; paths in it are absolute, or relative to its folder.

    Raises:
        DataError: no table, a column or a value is missing, or an image is listed twice.
        DependencyError: Parquet without pyarrow.
    """
    found: dict[str, dict[str, list[str]]] = {}
    seen: set[str] = set()
    for number, row in enumerate(_read_rows(path), start=1):
        name, class_name, domain = (_read_value(path, number, row, key) for key in COLUMNS)
        if name in seen:
            raise _refuse(path, f"the image {name!r} twice, again in row {number}")
        seen.add(name)
        found.setdefault(domain, {}).setdefault(class_name, []).append(name)
    if not found:
        raise _refuse(path, "no images")
    return found


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix.lower() == ".parquet":
        yield from _read_parquet(path)
        return
    try:
        text = decode_text(path.read_bytes())
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        _check_columns(path, rows.fieldnames or ())
        yield from rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _refuse(path, getattr(error, "strerror", None) or str(error)) from error


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DependencyError(
            where=path,
            found=f"no usable pyarrow ({error})",
            expected="pyarrow, which reads Parquet",
            next_step="pip install 'fedapt[tables]', or write the table as CSV",
        ) from error
    try:
        with parquet.ParquetFile(path) as table:
            _check_columns(path, table.schema_arrow.names)
            for batch in table.iter_batches(columns=list(COLUMNS)):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        text = str(error).splitlines()[0]
        raise _refuse(path, getattr(error, "strerror", None) or text) from error


def _check_columns(path: Path, names: Any) -> None:
    if missing := [name for name in COLUMNS if name not in names]:
        raise _refuse(
            path, f"no column {missing[0]!r} among {', '.join(map(str, names)) or 'none'}"
        )


def _read_value(path: Path, number: int, row: dict[str, Any], column: str) -> str:
    value = row[column]
    text = "" if value is None else str(value).strip()
    if not text:
        raise _refuse(path, f"no {column} in row {number}")
    return text


def _refuse(path: Path, found: str) -> DataError:
    return DataError(
        where=path,
        found=found,
        expected=f"a CSV or Parquet table with the columns {', '.join(COLUMNS)}",
        next_step="correct the table",
    )
