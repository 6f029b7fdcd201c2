"""Files that are whole or absent: every write goes to a temporary name and is renamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedapt.core.errors import FileError
from fedapt_runtime import atomic

_CHUNK_BYTES = 1 << 20


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it to `path` when the block ends well.

    The runtime's `atomic.replace_file` with fedapt's own error. Missing folders are made.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replace_file(path) as temporary:
            yield temporary
    except OSError as error:
        raise FileError(
            where=path,
            found=error.strerror or str(error),
            expected="a file that can be written",
            next_step="check the folder, its permissions and the free space, then run again",
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file, or leave the old one.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file, or leave the old one.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    write_bytes(path, text.encode("utf-8"))


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal.

    Raises:
        FileError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise FileError(
            where=path,
            found=error.strerror or str(error),
            expected="a readable file",
            next_step="check the path and its permissions",
        ) from error
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where fedapt keeps what it can compute again.

    `$FEDAPT_CACHE`, else `$XDG_CACHE_HOME/fedapt`, else `~/.cache/fedapt`.
    """
    if named := os.environ.get("FEDAPT_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fedapt"
