"""What a killed process has left is told from what another process is writing."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedapt_runtime.atomic import remove_left_over, replace_file, temporary_folder

_WRITE_AND_DIE = """
import os, sys
from pathlib import Path
from fedapt_runtime.atomic import replace_file
with replace_file(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(bytes(1000))
    temporary.with_name("beside").touch()
    os._exit(9)
"""


def leave_one(path: Path) -> set[str]:
    """Names of what a process that dies while it writes `path` leaves."""
    before = {p.name for p in path.parent.iterdir()}
    command = [sys.executable, "-c", _WRITE_AND_DIE, str(path)]
    assert subprocess.run(command, check=False).returncode == 9
    return {p.name for p in path.parent.iterdir()} - before


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_process_has_left_goes_with_the_next_file(tmp_path: Path) -> None:
    assert len(leave_one(tmp_path / "a.bin")) == 2
    with replace_file(tmp_path / "b.bin") as temporary:
        temporary.write_bytes(b"b")
    assert names(tmp_path) == ["b.bin"]


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    with replace_file(tmp_path / "a") as first:
        first.write_bytes(b"a")
        remove_left_over(tmp_path)
        with replace_file(tmp_path / "a") as second:
            second.write_bytes(b"b")
        assert first.read_bytes() == b"a"
        assert (tmp_path / "a").read_bytes() == b"b"
    assert (tmp_path / "a").read_bytes() == b"a"
    assert names(tmp_path) == ["a"]


def test_other_hidden_files_stay(tmp_path: Path) -> None:
    others = [".a.fedapt-tmp", ".abcdefgh.tmp", "abcdefgh.fedapt-tmp", ".abcdefgh.fedapt-tmp.d"]
    for name in others:
        (tmp_path / name).write_text("x")
    remove_left_over(tmp_path)
    assert names(tmp_path) == sorted(others)


def test_a_writer_that_replaces_its_file_is_safe(tmp_path: Path) -> None:
    with replace_file(tmp_path / "a") as temporary:
        other = temporary.with_name("of its own")
        other.write_bytes(b"new")
        other.replace(temporary)
        remove_left_over(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_marker_that_another_process_takes_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = fcntl.flock, []

    def flock(handle: int, operation: int) -> None:
        if not taken:
            (marker,) = tmp_path.iterdir()
            marker.unlink()  # in the instant before it is locked
        taken.append(handle)
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with temporary_folder(tmp_path) as folder:
        assert len(taken) == 2
        assert len(names(tmp_path)) == 2
        assert folder.is_dir()
    assert names(tmp_path) == []


def test_without_locks_nothing_is_taken_for_left_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = leave_one(tmp_path / "a")

    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", flock)
    with replace_file(tmp_path / "b") as temporary:
        temporary.write_bytes(b"b")
    assert set(names(tmp_path)) == left | {"b"}


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(Path("kept") / "file")
    for text in ("first", "second"):
        with replace_file(tmp_path / "link") as temporary:
            temporary.write_text(text)
        assert (tmp_path / "kept" / "file").read_text() == text
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["kept", "link"]
