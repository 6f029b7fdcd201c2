"""Requests of the server's operator: files in the server's own folder, and no network.

Only users who may write to the folder `state` can give the server work. The folder belongs to its
owner alone. The server holds a lock while it runs.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedapt.core.errors import FederationError
from fedapt.core.files import write_text
from fedapt.federation.flower.event_log import STATE

_LOCK, _REQUEST, _TRAINING = "server.lock", "train.request", "training"
# `is_running` holds the lock for a moment
_TRY_S = 2.0


@contextmanager
def hold_server(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder's only server while the block runs.

    Raises:
        FederationError: another server runs.
    """
    state = folder / STATE
    state.mkdir(mode=0o700, exist_ok=True)
    state.chmod(0o700)
    with _open(state / _LOCK) as lock:
        started = time.monotonic()
        while not _try_lock(lock):
            if time.monotonic() - started > _TRY_S:
                raise FederationError(
                    where=folder,
                    found="a running server of this folder",
                    expected="one server for each folder",
                    next_step="stop the other server first",
                )
            time.sleep(0.05)
        finish_training(folder)  # a request that an earlier server has left
        yield


def is_running(folder: Path) -> bool:
    """Whether a server of this folder runs on this machine."""
    if not (folder / STATE / _LOCK).is_file():
        return False
    with _open(folder / STATE / _LOCK) as lock:
        return not _try_lock(lock)


def request_training(folder: Path) -> None:
    """Request that the server trains, or continues its training."""
    write_text(folder / STATE / _REQUEST, "")


def withdraw_request(folder: Path) -> None:
    """Withdraw the request for training."""
    (folder / STATE / _REQUEST).unlink(missing_ok=True)


def take_request(folder: Path) -> bool:
    """Whether training was requested since the last call; marks it as started."""
    with suppress(FileNotFoundError):
        (folder / STATE / _REQUEST).replace(folder / STATE / _TRAINING)
        return True
    return False


def finish_training(folder: Path) -> None:
    """Record that training has ended, for any reason."""
    (folder / STATE / _TRAINING).unlink(missing_ok=True)


def is_at_work(folder: Path) -> bool:
    """Whether the server trains, or has a request to train."""
    # in this order: a request becomes a training
    there = (folder / STATE / _REQUEST).exists() or (folder / STATE / _TRAINING).exists()
    return there and is_running(folder)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield lock
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
