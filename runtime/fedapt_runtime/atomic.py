"""Files that are complete or absent at any moment, and after any crash.

A file is written in a temporary folder beside its place and then renamed. A locked marker beside
the folder distinguishes the remains of a killed process from the work of a running one. The next
job that writes there removes such remains.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedapt_runtime.lock import NoLocksHere, is_at, remove_locked, try_lock

_SUFFIX, _FOLDER = ".fedapt-tmp", ".d"
_MARKER = re.compile(r"\.[A-Za-z0-9_]{8}\.fedapt-tmp")


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; its file becomes `path` if the block raises no error.

    The data is on the disk before the rename, so a crash leaves the old file or the new one. A link
    stays a link, and its target is replaced.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    path = Path(os.path.realpath(path))
    with temporary_folder(path.parent) as folder:
        temporary = folder / path.name
        yield temporary
        _flush(temporary)
        # some writers create private files; the result gets default permissions
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder in `parent` for the block. If the process is killed, the next job removes it.

    Raises:
        OSError: `parent` is missing or not writable.
    """
    remove_left_over(parent)
    marker, handle = _make_marker(parent)
    folder = _folder_of(marker)
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        remove_locked(marker, handle)


def remove_left_over(parent: Path) -> None:
    """Remove the temporary folders of killed processes in `parent`."""
    try:
        with os.scandir(parent) as entries:
            markers = [Path(entry.path) for entry in entries if _MARKER.fullmatch(entry.name)]
    except OSError:  # a writable folder may be unreadable
        return
    for marker in markers:
        with suppress(OSError):  # another process has removed it, or owns it
            handle = os.open(marker, os.O_RDWR)
            try:
                is_left_over = try_lock(handle)
            except BaseException:
                os.close(handle)
                raise
            if not is_left_over:
                os.close(handle)
                continue
            shutil.rmtree(_folder_of(marker), ignore_errors=True)
            remove_locked(marker, handle)


def _folder_of(marker: Path) -> Path:
    return marker.with_name(marker.name + _FOLDER)


def _make_marker(parent: Path) -> tuple[Path, int]:
    """A new marker and its locked handle."""
    while True:
        handle, name = tempfile.mkstemp(_SUFFIX, ".", parent)
        with suppress(NoLocksHere):
            # before it is locked, another process may remove it as left over
            if not (try_lock(handle) and is_at(handle, Path(name))):
                os.close(handle)
                continue
        return Path(name), handle


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
