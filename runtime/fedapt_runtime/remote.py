"""Files behind a URI (s3://, gs://, hdfs://, file://) through pyarrow's file systems.

Each file system finds credentials and endpoints in its own way (S3: the AWS variables, files and
roles).

Source: Apache Arrow, "Filesystem Interface".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from fedapt_runtime.errors import ImageError, InputError, MissingDependency, OutputError, first_line
from fedapt_runtime.foreign import translate
from fedapt_runtime.preprocess import MAX_FILE_BYTES

_URI = re.compile(r"[a-z][a-z0-9+.-]+://", re.ASCII)
_A_PLACE = "a file, a folder or a prefix with images"
_NEXT_STEP = "check the URI, the credentials and the network"


def is_uri(path: object) -> bool:
    """Whether this is a URI, such as `s3://bucket/a.jpg`, and not a path."""
    return isinstance(path, str) and _URI.match(path) is not None


@lru_cache(maxsize=64)
def _open_file_system(root: str) -> Any:
    """The file system of `scheme://bucket`, opened once per process."""
    try:
        from pyarrow.fs import FileSystem
    except ImportError as error:
        raise MissingDependency(
            where=root,
            found=f"no pyarrow ({error})",
            expected="pyarrow, whose file systems read and write URIs",
            next_step="pip install 'fedapt-runtime[parquet]'",
        ) from error
    return FileSystem.from_uri(root)[0]


def to_local(uri: str) -> str | None:
    """The path in a file: URI, with escapes such as %20 decoded; None for any other URI.

    A path after file:// without escapes is found too.
    """
    scheme, rest = uri.split("://", 1)
    if scheme != "file":
        return None
    host, slash, path = rest.partition("/")
    path = slash + path if host in ("", "localhost") else f"//{rest}"
    plain = unquote(path, errors="surrogateescape")
    return path if os.path.lexists(path) and not os.path.lexists(plain) else plain


def to_uri(path: str) -> str:
    """The file: URI of a local path."""
    return "file://" + quote(os.fsencode(os.path.abspath(path)))


def _resolve(uri: str) -> tuple[Any, str]:
    """A file system and the path in it.

    Escapes in the keys of objects are not decoded. `to_local` decodes the paths of file: URIs.
    """
    if (local := to_local(uri)) is not None:
        return _open_file_system("file:///"), local
    scheme, rest = uri.split("://", 1)
    host, slash, path = rest.partition("/")
    file_system = _open_file_system(f"{scheme}://{host}/")
    # a path begins with the bucket; on HDFS the host is not part of the path
    return file_system, slash + path if scheme == "hdfs" else rest


def find_remote(uri: str) -> Iterator[str]:
    """Yield the URIs of all files below a folder or prefix, sorted. A file yields its own URI.

    Raises:
        InputError: there is no such file or folder, or it cannot be listed.
        MissingDependency: pyarrow is not installed.
    """
    with translate(
        InputError,
        where=uri,
        found="a location that cannot be listed",
        expected=_A_PLACE,
        next_step=_NEXT_STEP,
    ):
        file_system, path = _resolve(uri)
        from pyarrow.fs import FileSelector, FileType

        kind = file_system.get_file_info(path).type
        if kind == FileType.File:
            yield uri
            return
        if kind == FileType.NotFound:
            raise InputError(
                where=uri,
                found="no such file or folder",
                expected=_A_PLACE,
                next_step=_NEXT_STEP,
            )
        infos = file_system.get_file_info(FileSelector(path, recursive=True))
    prefix = uri[: len(uri) - len(path)]
    yield from sorted(prefix + info.path for info in infos if info.type == FileType.File)


def read_remote(uri: str) -> bytes:
    """The bytes of one image.

    Raises:
        ImageError: the file is missing, too large, or cannot be read.
        MissingDependency: pyarrow is not installed.
    """
    with translate(
        ImageError,
        where=uri,
        found="a file that cannot be read",
        expected="an image that can be read",
        next_step=_NEXT_STEP,
    ):
        file_system, path = _resolve(uri)
        try:
            stream = file_system.open_input_file(path)
        except FileNotFoundError as error:
            raise _unreadable(uri, "no such file") from error
        with stream:
            size = stream.size()
            if size > MAX_FILE_BYTES:
                found = f"a file of {size:,} bytes, over the limit of {MAX_FILE_BYTES:,}"
                raise _unreadable(uri, found)
            data: bytes = stream.read()
            return data


def check_folder(uri: str) -> None:
    """Check, without writing, that the bucket or folder of an output exists.

    Raises:
        OutputError: there is no such bucket or folder, or no access to it.
        MissingDependency: pyarrow is not installed.
    """
    try:
        file_system, path = _resolve(uri)
        # writing an object creates its folder, but not its bucket
        place = path.split("/", 1)[0] or path.rpartition("/")[0] or "/"
        is_there = file_system.get_file_info(place).type.name == "Directory"
        found = "" if is_there else f"no folder or bucket {place}"
    except (OSError, ValueError) as error:
        found = first_line(error)
    if found:
        raise OutputError(
            where=uri,
            found=found,
            expected="a bucket or folder that can be written",
            next_step=_NEXT_STEP,
        )


def copy_remote(uri: str, path: Path) -> bool:
    """Copy an object to a local file. Returns False if the object does not exist.

    Raises:
        OSError: the object cannot be read.
    """
    from pyarrow.fs import FileType, LocalFileSystem, copy_files

    file_system, source = _resolve(uri)
    if file_system.get_file_info(source).type != FileType.File:
        return False
    copy_files(source, str(path), file_system, LocalFileSystem())
    return True


def write_remote(path: Path, uri: str) -> None:
    """Copy a local file to a URI. The target appears only when it is complete.

    Raises:
        OSError: the target cannot be written, or has another size afterwards.
    """
    from pyarrow.fs import LocalFileSystem, copy_files

    file_system, target = _resolve(uri)
    if file_system.type_name in ("local", "hdfs"):  # a file is visible while it is written
        fresh = f"{target}.new"  # not .part: the journal may be in the same folder
        copy_files(str(path), fresh, LocalFileSystem(), file_system)
        file_system.move(fresh, target)
    else:
        copy_files(str(path), target, LocalFileSystem(), file_system)
    size, expected = file_system.get_file_info(target).size, path.stat().st_size
    if size != expected:
        raise OSError(f"{uri} has {size} bytes of {expected}")


def _unreadable(uri: str, found: str) -> ImageError:
    return ImageError(
        where=uri,
        found=found,
        expected="an image that can be read",
        next_step=_NEXT_STEP,
    )
