"""One writer at a time: locks that the operating system releases when a process ends.

A lock is a small file that its holder keeps open and locked (`flock`; on Windows `msvcrt`). A
killed process therefore leaves only the file, which the next holder locks and removes. `flock`
works over NFS too, where Linux uses a lock on the server.

Source: flock(2); fcntl(2), "Record locking and NFS".
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_SUFFIX = ".fedapt-lock"
_MAX_BYTES = 4096
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Held(Exception):
    """Another job holds the lock.

    Args:
        holder: such as "process 12 on host since 2026-01-01 00:00:00 UTC".
    """

    def __init__(self, holder: str) -> None:
        self.holder = holder
        super().__init__(holder)


class NoLocksHere(OSError):
    """The file system has no locks."""


@contextmanager
def hold_file(path: Path) -> Iterator[None]:
    """Be the only job that writes `path`, existing or not, while the block runs.

    Raises:
        Held: another job writes it.
        OSError: the folder is missing or not writable.
    """
    path = Path(os.path.realpath(path))  # so that two names of one file have the same lock
    with _hold(path.with_name(f".{path.name}{_SUFFIX}")):
        yield


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Be the only job that writes into `folder` while the block runs. Creates the folder.

    Folders that this call created and that are empty at the end are removed.

    Raises:
        Held: another job writes into the folder.
        OSError: the folder cannot be created or written.
    """
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _hold(folder / _SUFFIX):
            yield
    finally:
        with suppress(OSError):
            for made in missing:
                made.rmdir()


@contextmanager
def _hold(lock: Path) -> Iterator[None]:
    handle = _take(lock)
    try:
        yield
    finally:
        remove_locked(lock, handle)


def _take(lock: Path) -> int:
    while True:
        handle = _open(lock)
        try:
            try:
                if not try_lock(handle):
                    raise Held(_describe(handle))
            except NoLocksHere:
                text = f"{lock.parent} has no locks: a second job with one output would harm it"
                warnings.warn(text, stacklevel=5)
            if is_at(handle, lock):  # else its last holder has just removed it
                _sign(handle)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _open(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not lock.exists():
            raise
        return os.open(lock, os.O_RDONLY)  # the file of another user


def _sign(handle: int) -> None:
    """Write the holder's name, for the error message of the next job."""
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
    with suppress(OSError):  # the file of another user is not writable
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(holder).encode())
        os.fsync(handle)  # over NFS, others see only flushed data


def _describe(handle: int) -> str:
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        holder: dict[str, Any] = json.loads(os.read(handle, _MAX_BYTES))
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(float(holder["since"])))
        return f"process {int(holder['pid'])} on {str(holder['host'])[:253]} since {since}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return "another process"


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


if sys.platform == "win32":
    import msvcrt

    _LOCKED_BYTE = 1 << 30  # after the text, which others must be able to read

    def try_lock(handle: int) -> bool:
        """Lock an open file until it is closed; False where another process has it."""
        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def remove_locked(lock: Path, handle: int) -> None:
        """Close and remove a file that is locked here."""
        os.close(handle)  # Windows cannot remove an open file
        with suppress(OSError):
            lock.unlink()
else:
    import fcntl

    def try_lock(handle: int) -> bool:
        """Lock an open file until it is closed; False where another process has it.

        Raises:
            NoLocksHere: the file system has no locks.
        """
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                return False
            if error.errno in _NO_LOCKS:
                raise NoLocksHere(*error.args) from error
            raise
        return True

    def remove_locked(lock: Path, handle: int) -> None:
        """Remove and close a file that is locked here."""
        with suppress(OSError):
            lock.unlink()  # before it is unlocked, so no other process holds it
        os.close(handle)
