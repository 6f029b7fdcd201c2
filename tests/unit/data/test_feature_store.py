"""The feature store: which files are read again, rows by index, other processes, damage."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fedapt.core.errors import FileError
from fedapt.data import feature_store as module
from fedapt.data.feature_store import DamagedStore, FeatureStore

OLD_S = 1_000_000_000  # seconds since 1970: long before the test


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    with closing(FeatureStore(tmp_path / "cache")) as opened:
        yield opened


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose bytes were read."""
    paths: list[Path] = []

    def hash_file(path: Path) -> str:
        paths.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(module, "hash_file", hash_file)
    return paths


def write(path: Path, text: str, at_s: int = OLD_S) -> Path:
    path.write_bytes(os.fsencode(text))
    os.utime(path, (at_s, at_s))
    return path


def hash_files(store: FeatureStore, *paths: Path) -> list[str | None]:
    told: list[tuple[int, int]] = []
    with ThreadPoolExecutor(2) as pool:
        found = store.hash_files(paths, pool, lambda done, total: told.append((done, total)))
    assert told[-1] == (len(paths), len(paths))
    return found


def let_files_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of a file's inode is not to be dated back, so the store's clock goes ahead."""
    clock = module.time.time_ns
    monkeypatch.setattr(module.time, "time_ns", lambda: clock() + 10 * 10**9)


def test_an_unchanged_file_is_read_once(
    store: FeatureStore, tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write(tmp_path / name, name) for name in ("a", "b", "caf\udce9")]
    let_files_age(monkeypatch)
    digests = [hashlib.sha256(os.fsencode(path.name)).hexdigest() for path in paths[:2]]
    assert hash_files(store, *paths)[:2] == digests
    assert hash_files(store, *paths)[:2] == digests
    assert sorted(read) == sorted(paths)


@pytest.mark.parametrize("change", ["longer", "touched", "replaced", "rewritten with its old date"])
def test_a_changed_file_is_read_again(
    store: FeatureStore,
    tmp_path: Path,
    read: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    path = write(tmp_path / "a", "one")
    let_files_age(monkeypatch)
    hash_files(store, path)
    if change == "longer":
        write(path, "longer")
    elif change == "touched":
        write(path, "two", OLD_S + 1)
    elif change == "replaced":
        os.replace(write(tmp_path / "b", "two"), path)
    else:
        write(path, "two")
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert hash_files(store, path) == [expected]
    assert read == [path, path]


def test_a_file_that_changed_a_moment_ago_is_read_again(
    store: FeatureStore, tmp_path: Path, read: list[Path]
) -> None:
    path = write(tmp_path / "a", "one")
    assert hash_files(store, path) == hash_files(store, path)
    assert read == [path, path]


def test_a_file_that_changes_while_it_is_read_is_read_again(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a", "one")
    let_files_age(monkeypatch)
    monkeypatch.setattr(module, "hash_file", lambda _: write(path, "other") and "00")
    assert hash_files(store, path) == ["00"]
    monkeypatch.setattr(module, "hash_file", lambda _: "11")
    assert hash_files(store, path) == ["11"]


def test_a_folder_or_nothing_has_no_hash(store: FeatureStore, tmp_path: Path) -> None:
    assert hash_files(store, tmp_path, tmp_path / "absent") == [None, None]


def digest_of(number: int) -> str:
    return f"{number:064x}"


def feature(number: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array([number, -number], np.float32)


def test_features_are_read_by_index(store: FeatureStore) -> None:
    for number in range(1200):  # more than a query asks for
        store.add(digest_of(number), feature(number))
    store.flush()
    wanted = [digest_of(number) for number in (3, 1199, 7777)]
    found = dict(store.read(wanted))
    assert found.keys() == {wanted[0], wanted[1]}
    assert found[wanted[0]].tolist() == [3, -3]
    assert found[wanted[1]].dtype == np.float32
    everything = dict(store.read([digest_of(number) for number in range(1200)]))
    assert [everything[digest_of(n)].tolist() for n in range(1200)] == [
        [n, -n] for n in range(1200)
    ]


def test_a_row_whose_bytes_changed_is_absent(store: FeatureStore) -> None:
    for number in (1, 2):
        store.add(digest_of(number), feature(number))
    store.flush()
    with closing(sqlite3.connect(store.path)) as database, database:
        one = feature(1).tobytes()
        database.execute("UPDATE features SET feature = ?", (one,))  # right for the first alone
    assert [d for d, _ in store.read([digest_of(1), digest_of(2)])] == [digest_of(1)]


def test_a_killed_writer_loses_what_it_had_not_committed(tmp_path: Path) -> None:
    code = (
        "import os, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from fedapt.data.feature_store import FeatureStore\n"
        "store = FeatureStore(Path(sys.argv[1]))\n"
        "for n in range(300):\n"
        "    store.add(f'{n:064x}', np.array([n, -n], np.float32))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    with closing(FeatureStore(tmp_path)) as store:
        found = dict(store.read([digest_of(number) for number in range(300)]))
        assert sorted(found) == [digest_of(number) for number in range(256)]
        assert all(found[digest_of(n)].tolist() == [n, -n] for n in range(256))


def test_two_writers_and_a_reader_share_a_store(store: FeatureStore) -> None:
    with closing(FeatureStore(store.path.parent)) as other:
        store.add(digest_of(1), feature(1))
        other.add(digest_of(1), feature(1))
        other.add(digest_of(2), feature(2))
        store.flush()
        other.flush()
        found = dict(store.read([digest_of(1), digest_of(2)]))
    assert {d: f.tolist() for d, f in found.items()} == {
        digest_of(1): [1, -1],
        digest_of(2): [2, -2],
    }


def test_a_full_disk_is_told(store: FeatureStore) -> None:
    store._database.execute("PRAGMA max_page_count = 4")
    store.add(digest_of(1), np.zeros(100_000, np.float32))
    with pytest.raises(FileError, match="found database or disk is full; expected a cache that"):
        store.flush()


def test_what_is_no_database_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "features.sqlite3").write_bytes(b"no database" * 100)
    with pytest.raises(DamagedStore, match="found file is not a database"):
        FeatureStore(tmp_path)
    module.remove_store(tmp_path)
    FeatureStore(tmp_path).close()
