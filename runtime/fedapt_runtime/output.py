"""Rows -> a file of predictions: JSON lines, CSV or Parquet, by its suffix."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fedapt_runtime.destination import Destination, claim, is_object, local_path
from fedapt_runtime.errors import MissingDependency, OutputError
from fedapt_runtime.journal import Journal
from fedapt_runtime.remote import check_folder

CSV_COLUMNS = ("path", "label", "score", "routed_to", "top_k", "domain_weights", "error")
UNKNOWN_COLUMNS = ("unknown_score", "unknown")
_ROW_GROUP = 10_000


def _write_jsonl(journal: Journal, path: Path, flag_unknown: bool) -> None:
    with path.open("wb") as stream:
        stream.writelines(journal.lines())


def _write_csv(journal: Journal, path: Path, flag_unknown: bool) -> None:
    columns = CSV_COLUMNS + (UNKNOWN_COLUMNS if flag_unknown else ())
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        table = csv.DictWriter(stream, columns)
        table.writeheader()
        for row in journal.rows():
            for key in ("top_k", "domain_weights"):
                row[key] = json.dumps(row[key], ensure_ascii=False)
            table.writerow(row)


def _write_parquet(journal: Journal, path: Path, flag_unknown: bool) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    share = pa.float32()
    unknown = {"unknown_score": share, "unknown": pa.bool_()} if flag_unknown else {}
    schema = pa.schema(
        {
            "path": pa.string(),
            "label": pa.string(),
            "score": share,
            "routed_to": pa.string(),
            "top_k": pa.list_(pa.struct({"label": pa.string(), "score": share})),
            "domain_weights": pa.map_(pa.string(), share),
            "error": pa.string(),
            **unknown,
        }
    )
    rows = (_to_arrow(row) for row in journal.rows())
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def _to_arrow(row: dict[str, Any]) -> dict[str, Any]:
    top_k = [{"label": label, "score": score} for label, score in row["top_k"]]
    texts = {name: row[name] and _escape(row[name]) for name in ("path", "error")}
    return row | texts | {"top_k": top_k, "domain_weights": [*row["domain_weights"].items()]}


def _escape(text: str) -> str:
    # Arrow's strings are UTF-8, so other bytes of a file name are escaped
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


WRITERS: dict[str, Callable[[Journal, Path, bool], None]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}


def check_output(out: Destination | None) -> None:
    """Refuse an unknown format or a path that cannot be written, before any work.

    Args:
        out: a path or URI; None is stdout.

    Raises:
        OutputError: the suffix is not in `WRITERS`, the folder or bucket does not exist, the path
            is not a file, or another job writes it.
        MissingDependency: Parquet, or a URI, without pyarrow.
    """
    if out is None:
        return
    suffix = local_path(out).suffix.lower()
    if suffix not in WRITERS:
        raise OutputError(
            where=out,
            found=f"the suffix {local_path(out).suffix!r}",
            expected=" or ".join(WRITERS),
            next_step="rename the output",
        )
    if suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise MissingDependency(
                where=out,
                found=f"no pyarrow ({error})",
                expected="pyarrow, which writes Parquet",
                next_step="pip install 'fedapt-runtime[parquet]', or write .jsonl or .csv",
            ) from error
    path = local_path(out)
    if is_object(out):
        check_folder(str(out))
    elif not path.parent.is_dir():
        raise OutputError(
            where=out,
            found=f"no folder {path.parent}",
            expected="a folder that can be written",
            next_step="create the folder, or choose another folder",
        )
    elif path.exists() and not path.is_file():
        raise OutputError(
            where=out,
            found="a folder" if path.is_dir() else "a pipe or a device",
            expected="a file that can be replaced",
            next_step="choose another name, or omit the output to write rows to stdout",
        )
    with claim(out):
        pass  # a conflict is reported before any work


def read_paths(path: Path, suffix: str) -> Iterator[str]:
    """Yield the column `path` of an output, in the form of `show_path`.

    Args:
        path: a local file.
        suffix: its format, a key of `WRITERS` in any case.

    Raises:
        ValueError, KeyError, TypeError: the file does not contain predictions.
    """
    suffix = suffix.lower()
    if suffix == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(columns=["path"]):
                yield from batch.column("path").to_pylist()
        return
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        lines = csv.DictReader(stream) if suffix == ".csv" else map(json.loads, stream)
        for row in lines:
            yield show_path(row["path"], suffix)


def show_path(name: str, suffix: str) -> str:
    """A path as an output with this suffix contains it; Parquet escapes bytes outside UTF-8."""
    return _escape(name) if suffix.lower() == ".parquet" else name


def write_output(journal: Journal, path: Path, suffix: str, flag_unknown: bool = False) -> None:
    """Write every row of a journal to `path` in the format of `suffix`.

    Args:
        suffix: a key of `WRITERS` in any case.
        flag_unknown: whether the rows have the columns of `UNKNOWN_COLUMNS`.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    WRITERS[suffix.lower()](journal, path, flag_unknown)
