"""Lists and tables of paths: text, standard input, Parquet, and the outputs of other jobs."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO

from fedapt_runtime.errors import InputError, MissingDependency
from fedapt_runtime.foreign import translate
from fedapt_runtime.formats import NO_PATH, LeftOut
from fedapt_runtime.text import detect_encoding

LIST_SUFFIXES = (".txt", ".lst")
TABLE_SUFFIXES = (".parquet", ".jsonl", ".csv")
_CHUNK_BYTES = 1 << 16
_MAX_LINE_BYTES = 1 << 24  # enough for a row of an output; a path has a few thousand bytes
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def read_stdin() -> Iterator[str]:
    """Yield the paths in the lines of standard input.

    Raises:
        InputError: standard input is closed or cannot be read.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise refuse("stdin", "a closed standard input")
    with _reading("stdin", "a list that cannot be read"):
        yield from _read_lines(sys.stdin.buffer)


def read_list(path: str) -> Iterator[str]:
    """Yield the paths in a text file, one per line, or each followed by NUL (`find -print0`).

    Raises:
        InputError: the file cannot be read.
    """
    with _reading(path, "a list that cannot be read"), open(path, "rb") as stream:
        yield from _read_lines(stream)


def read_table(path: str, left_out: LeftOut) -> Iterator[str]:
    """Yield the column `path` of a table, such as the output of another job.

    Args:
        path: a .jsonl, .csv or .parquet file.
        left_out: counts rows without a path.

    Raises:
        InputError: the table cannot be read or has no such column.
        MissingDependency: Parquet without pyarrow.
    """
    read = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    with _reading(path, "a table that cannot be read"):
        for name in read[os.path.splitext(path)[1].lower()](path):
            if name:
                yield name
            else:
                left_out.add(NO_PATH)


def _read_lines(stream: BinaryIO) -> Iterator[str]:
    start = _read_some(stream)
    encoding, mark = detect_encoding(start)
    chunks = _chunks(start[mark:], stream)
    if encoding == "utf-8":  # invalid bytes are kept, because file names may contain them
        # old editors of macOS end lines with a carriage return alone
        separator = next((mark for mark in (b"\0", b"\n", b"\r") if mark in start), b"\n")
        for line in _split(chunks, separator):
            name = line if separator == b"\0" else line.rstrip(b"\r")
            if name:
                yield os.fsdecode(name)
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    texts = (decoder.decode(chunk, final=not chunk).encode("utf-8") for chunk in chunks)
    for line in _split(texts, b"\n"):
        if name := line.rstrip(b"\r\0"):
            yield os.fsdecode(name)


def _read_some(stream: BinaryIO) -> bytes:
    """The first bytes, at least to the end of the first path."""
    start = b""
    while len(start) < 4 or not (b"\n" in start or b"\0" in start):
        if len(start) > _MAX_LINE_BYTES or not (more := _read_now(stream)):
            break
        start += more
    return start


def _read_now(stream: BinaryIO) -> bytes:
    """Bytes that are available without waiting, because paths may arrive slowly."""
    read = getattr(stream, "read1", stream.read)
    data: bytes = read(_CHUNK_BYTES)
    return data


def _chunks(start: bytes, stream: BinaryIO) -> Iterator[bytes]:
    """All bytes in chunks; an empty chunk marks the end."""
    yield start
    while chunk := _read_now(stream):
        yield chunk
    yield b""


def _split(chunks: Iterable[bytes], separator: bytes) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(separator)
        yield from lines
        if len(rest) > _MAX_LINE_BYTES:
            raise ValueError(f"a line of more than {_MAX_LINE_BYTES:,} bytes")
    yield rest


def _read_jsonl(path: str) -> Iterator[str]:
    with open(path, "rb") as stream:
        for line in _split(iter(lambda: stream.read(_CHUNK_BYTES), b""), b"\n"):
            if line.strip():
                row = json.loads(line.decode("utf-8-sig", "surrogateescape"))
                yield from _to_names([row["path"] if isinstance(row, dict) else row], path)


def _read_csv(path: str) -> Iterator[str]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        rows = csv.reader(stream)
        header = next(rows, [])
        if "path" not in header:
            raise refuse(path, "a table without the column path")
        column = header.index("path")
        for row in rows:
            if row:
                yield from _to_names(row[column : column + 1] or [""], path)


def _read_parquet(path: str) -> Iterator[str]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingDependency(
            where=path,
            found=f"no pyarrow ({error})",
            expected="pyarrow, which reads Parquet",
            next_step="pip install 'fedapt-runtime[parquet]'",
        ) from error
    with ParquetFile(path) as table:
        if "path" not in table.schema_arrow.names:
            raise refuse(path, "a table without the column path")
        for batch in table.iter_batches(columns=["path"]):
            for name in _to_names(batch.column(0).to_pylist(), path):
                yield _unescape(name) if "\\x" in name else name


def _to_names(values: Iterable[object], path: str) -> Iterator[str]:
    """Paths from a column's values; an empty string for a row without a path."""
    for value in values:
        if isinstance(value, bytes):
            value = os.fsdecode(value)
        if value is not None and not isinstance(value, str):
            raise refuse(path, f"a column path with a {type(value).__name__}, {value!r:.60}")
        os.fsencode(value or "")  # raises for a lone surrogate, which JSON can contain
        yield value or ""


def _unescape(name: str) -> str:
    """A path whose bytes are not UTF-8, from its escaped form in an output."""
    if os.path.lexists(name):
        return name
    raw = _ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), os.fsencode(name))
    return os.fsdecode(raw)


def _reading(path: str, found: str) -> AbstractContextManager[None]:
    return translate(
        InputError,
        where=path,
        found=found,
        expected="paths of images, one per line or row",
        next_step="check the file",
    )


def refuse(path: str, found: str) -> InputError:
    """The error for a path that cannot be used."""
    return InputError(
        where=path,
        found=found,
        expected="images, or folders, archives, lists or patterns of images",
        next_step="check the path",
    )
