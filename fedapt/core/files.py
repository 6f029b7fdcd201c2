"""Files that are complete or absent, written by one job at a time.

This module wraps the runtime's `atomic` and `lock` with fedapt's own errors.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from fedapt.core.errors import FileError
from fedapt_runtime import atomic, cache, lock


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; its file becomes `path` if the block raises no error.

    Missing folders are created.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replace_file(path) as temporary:
            yield temporary
    except OSError as error:
        raise _cannot_write(path, error) from error


@contextmanager
def claim_file(path: Path) -> Iterator[None]:
    """Be the only job that writes a file while the block runs. Creates missing folders.

    Temporary files of killed jobs are removed from the folder.

    Raises:
        FileError: another job writes it, it is not a file, or its folder cannot be written.
    """
    if path.exists() and not path.is_file():
        raise FileError(
            where=path,
            found="a folder" if path.is_dir() else "a pipe or a device",
            expected="a file that can be replaced",
            next_step="choose another name",
        )
    # hold_folder would leave its lock in a folder that is full of other files
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    with _claim(path, lock.hold_file(path)):
        atomic.remove_left_over(path.parent)
        yield


@contextmanager
def claim_folder(folder: Path) -> Iterator[None]:
    """Be the only job that writes into a folder while the block runs. Creates the folder.

    Temporary files of killed jobs are removed. A new folder that stays empty is removed too.

    Raises:
        FileError: another job writes into it, or it cannot be written.
    """
    with _claim(folder, lock.hold_folder(folder)):
        atomic.remove_left_over(folder)
        yield


@contextmanager
def make_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` if the block raises no error; one job at a time.

    Missing parent folders are created.

    Raises:
        FileError: there is something at `path`, another job makes it, or it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    with _claim(path, lock.hold_file(path)):
        if os.path.lexists(path):
            raise FileError(
                where=path,
                found="a folder or file",
                expected="a new folder",
                next_step="choose another name",
            )
        try:
            with atomic.temporary_folder(path.parent) as temporary:
                new = temporary / path.name
                new.mkdir()
                yield new
                new.rename(path)
        except OSError as error:
            raise _cannot_write(path, error) from error


@contextmanager
def _claim(path: Path, held: AbstractContextManager[None]) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(held)
        except lock.Held as error:
            raise FileError(
                where=path,
                found=f"an output that {error.holder} is writing",
                expected="one job for an output",
                next_step="wait until that job ends, or choose another output",
            ) from error
        except OSError as error:
            raise _cannot_write(path, error) from error
        yield


def _cannot_write(path: Path, error: OSError) -> FileError:
    return FileError(
        where=path,
        found=error.strerror or str(error),
        expected="a file that can be written",
        next_step="check the folder, its permissions and the free space, then run again",
    )


def write_bytes(path: Path, *parts: bytes) -> None:
    """Write a complete file, or keep the old one.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    with replace_file(path) as temporary, temporary.open("wb") as stream:
        stream.writelines(parts)


def write_text(path: Path, text: str) -> None:
    """Write a complete UTF-8 text file, or keep the old one.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    write_bytes(path, text.encode("utf-8"))


def write_secret(path: Path, data: bytes) -> None:
    """Write a complete file that only its owner can read, from the first byte.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    before = os.umask(0o077)
    try:
        write_bytes(path, data)
    finally:
        os.umask(before)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal.

    Raises:
        FileError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise FileError(
            where=path,
            found=error.strerror or str(error),
            expected="a readable file",
            next_step="check the path and its permissions",
        ) from error


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder in `parent` that is removed when the block ends.

    If the process is killed, the next call removes it.

    Raises:
        FileError: the folder cannot be created.
    """
    try:
        with atomic.temporary_folder(parent) as folder:
            yield folder
    except OSError as error:
        raise _cannot_write(parent, error) from error


def scratch_folder() -> AbstractContextManager[Path]:
    """A temporary folder where the system keeps such; see `temporary_folder`."""
    return temporary_folder(Path(tempfile.gettempdir()))


def cache_folder() -> Path:
    """The folder for values that can be computed again.

    The runtime keeps its measurements there too, see `fedapt_runtime.cache`.
    """
    try:
        return cache.cache_folder()
    except RuntimeError as error:
        raise _no_cache(Path("~"), "a user without a home folder") from error


def check_cache() -> None:
    """Refuse a cache that cannot be written, before the work that fills it.

    Raises:
        FileError: see above; the next step names the variable.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic.temporary_folder(folder):
            pass
    except OSError as error:
        raise _no_cache(folder, error.strerror or str(error)) from error


def _no_cache(folder: Path, found: str) -> FileError:
    return FileError(
        where=f"the cache {folder}",
        found=found,
        expected="a folder that can be written",
        next_step="set FEDAPT_CACHE to one",
    )
