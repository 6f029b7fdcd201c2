"""The feature cache of one encoder on disk: hashes of unchanged files, and features by hash.

One SQLite database holds both. SQLite lets one process write at a time while others read. A
process that is killed loses only its uncommitted rows. A row whose bytes have changed is a cache
miss. A damaged database is created again.

Source: https://sqlite.org/lockingv3.html; the rule about files that changed a moment ago is Git's
(https://git-scm.com/docs/racy-git).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedapt.core.errors import FileError
from fedapt.core.files import hash_file

Progress = Callable[[int, int], None]
T = TypeVar("T")

_NAME = "features.sqlite3"
_COMMIT_ROWS = 256  # features that a killed process may lose
_QUERY_ROWS = 500
_WAIT_S = 60.0  # for another process's commit
_SETTLED_S = 2.0  # a file this young could change once more within the resolution of its times
_SCHEMA = """
PRAGMA page_size = 32768;
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, state TEXT, digest TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS features (digest TEXT PRIMARY KEY, feature BLOB, seal BLOB);
"""


class DamagedStore(FileError):
    """The database is damaged, or the file is not a database."""


def remove_store(folder: Path) -> None:
    """Delete a damaged database, so that a new one can be created."""
    for name in (_NAME, f"{_NAME}-journal"):
        (folder / name).unlink(missing_ok=True)


class FeatureStore:
    """Features by the SHA-256 of the image's bytes.

    Raises:
        DamagedStore: any method, where the database is damaged.
        FileError: any method, where it cannot be opened or written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / _NAME
        self._new: dict[str, NDArray[np.float32]] = {}
        with self._reported():
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=_WAIT_S)
            try:
                self._database.executescript(_SCHEMA)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close the file; rows that are not flushed are lost."""
        self._database.close()

    def hash_files(
        self, paths: Sequence[Path], pool: Executor, progress: Progress
    ) -> list[str | None]:
        """SHA-256 of every file, hexadecimal; None if it is not a file.

        A file is read only if its path, size, times or inode have changed since the last
        reading, or if it was too young then.

        Args:
            pool: threads that read.
            progress: called with the numbers of known files and of all files.
        """
        begun = time.time_ns() - int(_SETTLED_S * 1e9)
        states = [state for part in pool.map(_read_states, _parts(paths)) for state in part]
        keys = [hashlib.blake2b(os.fsencode(p.absolute()), digest_size=16).digest() for p in paths]
        with self._reported():
            known = {
                key: (state, digest)
                for key, state, digest in self._select("files", "path", "path, state, digest", keys)
            }
        digests: list[str | None] = []
        changed: list[int] = []
        for i, (key, state) in enumerate(zip(keys, states, strict=True)):
            kept, digest = known.get(key, (None, None))
            digests.append(digest if state is not None and kept == state.text else None)
            if state is not None and digests[i] is None:
                changed.append(i)
        done = len(paths) - len(changed)
        progress(done, len(paths))
        found = pool.map(hash_file, (paths[i] for i in changed))
        rows = []
        for count, (i, digest) in enumerate(zip(changed, found, strict=True), 1):
            digests[i], state = digest, states[i]
            if state is not None and state.newest_ns < begun and _read_state(paths[i]) == state:
                rows.append((keys[i], state.text, digest))
            progress(done + count, len(paths))
        with contextlib.suppress(FileError):  # hashes that are not stored are computed again
            self._write("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)
        return digests

    def read(self, digests: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The stored features of these images, float32 [D], in any order."""
        with self._reported():
            for digest, data, seal in self._select(
                "features", "digest", "digest, feature, seal", digests
            ):
                if _seal(digest, data) == seal:
                    yield digest, np.frombuffer(data, np.float32)

    def add(self, digest: str, feature: NDArray[np.float32]) -> None:
        """Store one feature, float32 [D]; the next commit or `flush` writes it to disk."""
        self._new[digest] = feature
        if len(self._new) >= _COMMIT_ROWS:
            self.flush()

    def flush(self) -> None:
        """Commit what is not yet on disk."""
        rows = []
        for digest, feature in self._new.items():
            data = feature.tobytes()
            rows.append((digest, data, _seal(digest, data)))
        self._write("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
        self._new.clear()

    def _select(
        self, table: str, key: str, columns: str, values: Sequence[object]
    ) -> Iterator[tuple[Any, ...]]:
        for part in _parts(values):
            marks = ", ".join("?" * len(part))
            query = f"SELECT {columns} FROM {table} WHERE {key} IN ({marks})"
            yield from self._database.execute(query, part)

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        if rows:
            with self._reported(), self._database:
                self._database.executemany(statement, rows)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.DatabaseError) as error:
            is_damaged = not isinstance(error, OSError | sqlite3.OperationalError)
            raise (DamagedStore if is_damaged else FileError)(
                where=self.path,
                found=str(getattr(error, "strerror", None) or error),
                expected="a cache that can be read and written",
                next_step="check the folder, its permissions and the free space",
            ) from error


@dataclass(frozen=True)
class _State:
    """Size, times and inode of a file; they show whether the file has changed.

    Attributes:
        text: size, times and inode.
        newest_ns: the later of its two times.
    """

    text: str
    newest_ns: int


def _read_state(path: Path) -> _State | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    text = f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"
    return _State(text, max(found.st_mtime_ns, found.st_ctime_ns))


def _read_states(paths: Sequence[Path]) -> list[_State | None]:
    return [_read_state(path) for path in paths]


def _parts(values: Sequence[T]) -> Iterator[Sequence[T]]:
    return (values[i : i + _QUERY_ROWS] for i in range(0, len(values), _QUERY_ROWS))


def _seal(digest: str, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8, key=digest.encode()[:64]).digest()
