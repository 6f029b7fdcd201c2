"""What to classify: files, folders, patterns, lists, archives, standard input; one by one.

Nothing is extracted to disk, and no name is held longer than its turn: a million paths need no more
memory than a thousand.
"""

from __future__ import annotations

import glob
import os
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fedapt_runtime.errors import ImageError, InputError, MissingDependency
from fedapt_runtime.preprocess import IMAGE_SUFFIXES, MOST_FILE_BYTES
from fedapt_runtime.remote import find_remote, is_uri

STDIN = "-"
PARQUET_SUFFIX = ".parquet"
LIST_SUFFIXES = (".txt", ".lst")
ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_IMAGES = f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))}"
_PATHS = "paths of images"
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,  # a compression that zipfile does not know
    RuntimeError,  # an encrypted member
)


@dataclass(frozen=True)
class Member:
    """An image inside an archive.

    Attributes:
        name: `archive::path inside`.
        read: its bytes; raises ImageError.
    """

    name: str
    read: Callable[[], bytes]


Found = str | Member


def find_images(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Found]:
    """The images that these stand for.

    A file stands for itself; a folder for every image file below it, sorted; an archive for every
    image file in it, in its order; a .txt or .lst file, and `-` for standard input, for the paths
    on its lines; a .parquet file for its column `path`; a URI for itself, or for every image file
    below it; a pattern with * for the files that it matches, sorted. A file that turns out to
    be no image is a matter of its row.

    Raises:
        InputError: a path that does not exist, a folder, archive or pattern without any image file,
            a list or table without any path.
    """
    for given in paths:
        path = os.fspath(given)
        if path == STDIN:
            yield from _not_empty("stdin", "a list", _read_lines(sys.stdin.buffer), _PATHS)
        elif is_uri(path):
            yield from _read_uri(path)
        elif os.path.isdir(path):
            yield from _not_empty(path, "a folder", _walk(path))
        elif not os.path.lexists(path):
            if not glob.has_magic(path):
                raise _refuse(path, "no such file or folder")
            files = (name for name in sorted(glob.iglob(path, recursive=True)) if _is_image(name))
            yield from _not_empty(path, "a pattern", files)
        elif path.lower().endswith(LIST_SUFFIXES):
            yield from _not_empty(path, "a list", _read_list(path), _PATHS)
        elif path.lower().endswith(PARQUET_SUFFIX):
            yield from _not_empty(path, "a table", _read_parquet(path), _PATHS)
        elif path.lower().endswith(ZIP_SUFFIXES):
            yield from _not_empty(path, "an archive", _read_zip(path))
        elif path.lower().endswith(TAR_SUFFIXES):
            yield from _not_empty(path, "an archive", _read_tar(path))
        else:
            yield path


def count_images(paths: Iterable[str | os.PathLike[str]]) -> int | None:
    """How many images these stand for; None where only reading them all would tell.

    Raises:
        InputError: as `find_images`, before any work is done.
    """
    total: int | None = 0
    for given in paths:
        path = os.fspath(given)
        is_stream = path == STDIN or path.lower().endswith(TAR_SUFFIXES)
        if is_uri(path) or (is_stream and (path == STDIN or os.path.isfile(path))):
            total = None
            continue
        count = sum(1 for _ in find_images([path]))
        total = None if total is None else total + count
    return total


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _walk(path: str) -> Iterator[str]:
    for folder, folders, names in os.walk(path, onerror=_refuse_folder):
        folders.sort()
        for name in sorted(names):
            if _is_image(name):
                yield os.path.join(folder, name)


def _read_list(path: str) -> Iterator[str]:
    try:
        with open(path, "rb") as stream:
            yield from _read_lines(stream)
    except OSError as error:
        raise _refuse(path, f"a list that cannot be read ({error.strerror})") from error


def _read_uri(uri: str) -> Iterator[str]:
    for found in find_remote(uri):
        if found == uri or _is_image(found):
            yield found


def _read_parquet(path: str) -> Iterator[str]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingDependency(
            where=path,
            found=f"no pyarrow ({error})",
            expected="pyarrow, which reads Parquet",
            next_step="pip install 'fedapt-runtime[parquet]'",
        ) from error
    try:
        with ParquetFile(path) as table:
            if "path" not in table.schema_arrow.names:
                raise _refuse(path, "a table without the column path")
            for batch in table.iter_batches(columns=["path"]):
                yield from (str(name) for name in batch.column(0).to_pylist() if name)
    except (ArrowException, OSError) as error:
        raise _refuse(path, f"a table that cannot be read ({error})") from error


def _read_lines(stream: BinaryIO) -> Iterator[str]:
    for line in stream:
        if name := line.rstrip(b"\r\n"):
            yield os.fsdecode(name)


def _read_zip(path: str) -> Iterator[Member]:
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGED as error:
        raise _refuse(path, f"a damaged archive ({error})") from error
    with archive:  # the last member is read before the generator is asked for more
        for info in archive.infolist():
            if not info.is_dir() and _is_image(info.filename):
                name = f"{path}::{info.filename}"
                yield Member(name, _zip_reader(path, info, name))


def _zip_reader(path: str, info: zipfile.ZipInfo, name: str) -> Callable[[], bytes]:
    def read() -> bytes:
        if info.file_size > MOST_FILE_BYTES:
            raise _too_large(name, info.file_size)
        try:
            # opened again: decoding threads read when the listing may be done
            with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
                return stream.read()  # never more than the archive declares
        except _DAMAGED as error:
            raise _unreadable(name, f"a damaged archive member ({error})") from error

    return read


def _read_tar(path: str) -> Iterator[Member]:
    """Members of a tar, which can only be read from front to back."""
    where = path
    try:
        with tarfile.open(path, "r|*") as archive:
            for info in archive:
                if not info.isfile() or not _is_image(info.name):
                    continue
                where = f"{path}::{info.name}"
                if info.size > MOST_FILE_BYTES:
                    yield Member(where, _failing(_too_large(where, info.size)))
                    continue
                stream = archive.extractfile(info)
                data = stream.read() if stream is not None else b""
                yield Member(where, lambda data=data: data)  # type: ignore[misc]
    except _DAMAGED as error:
        # what follows cannot be reached: one row says so
        yield Member(where, _failing(_unreadable(where, f"a damaged archive ({error})")))


def _failing(error: ImageError) -> Callable[[], bytes]:
    def read() -> bytes:
        raise error

    return read


def _not_empty(
    path: str, kind: str, found: Iterator[Found], expected: str = _IMAGES
) -> Iterator[Found]:
    empty = True
    for item in found:
        empty = False
        yield item
    if empty:
        raise InputError(
            where=path,
            found=f"{kind} without images",
            expected=expected,
            next_step="check the path",
        )


def _too_large(name: str, size: int) -> ImageError:
    return _unreadable(name, f"a file of {size:,} bytes, over the limit of {MOST_FILE_BYTES:,}")


def _unreadable(name: str, found: str) -> ImageError:
    return ImageError(
        where=name,
        found=found,
        expected="an image that can be read out of its archive",
        next_step="pack the archive again",
    )


def _refuse(path: str, found: str) -> InputError:
    return InputError(
        where=path,
        found=found,
        expected="images, or folders, archives, lists or patterns of images",
        next_step="check the path",
    )


def _refuse_folder(error: OSError) -> None:
    raise InputError(
        where=error.filename,
        found=f"a folder that cannot be read ({error.strerror})",
        expected="a readable folder",
        next_step="check its permissions",
    ) from error
