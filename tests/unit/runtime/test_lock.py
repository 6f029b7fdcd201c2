"""One writer at a time, also after a process was killed, and a message that names the holder."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedapt_runtime.lock import Held, hold_file, hold_folder

_HOLD = """
import sys, time
from pathlib import Path
from fedapt_runtime import lock
with getattr(lock, sys.argv[1])(Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(kind: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds a lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, kind, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdin
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(60)


@pytest.mark.parametrize("kind", ["hold_file", "hold_folder"])
def test_the_second_is_refused_and_told_who_holds_it(tmp_path: Path, kind: str) -> None:
    hold = {"hold_file": hold_file, "hold_folder": hold_folder}[kind]
    out = tmp_path / "out"
    with held_by_another(kind, out) as process:
        with pytest.raises(Held) as told, hold(out):
            pass
        pattern = rf"process {process.pid} on {re.escape(socket.gethostname())} since [-\d]+ [:\d]+"
        assert re.fullmatch(f"{pattern} UTC", told.value.holder)
    with hold(out):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["hold_file", "hold_folder"])
def test_a_killed_holder_leaves_no_lock(tmp_path: Path, kind: str) -> None:
    hold = {"hold_file": hold_file, "hold_folder": hold_folder}[kind]
    out = tmp_path / "out"
    with held_by_another(kind, out) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert [path.name for path in tmp_path.rglob("*lock")]  # its file alone
    with hold(out):
        pass
    assert list(tmp_path.rglob("*lock")) == []


def test_one_process_holds_it_once(tmp_path: Path) -> None:
    with hold_file(tmp_path / "out"):
        with pytest.raises(Held, match=f"process {os.getpid()} on "), hold_file(tmp_path / "out"):
            pass
        with hold_file(tmp_path / "another"):
            pass


def test_two_names_of_one_file_have_one_lock(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("out")
    with hold_file(tmp_path / "link"), pytest.raises(Held), hold_file(tmp_path / "out"):
        pass


def test_folders_that_were_made_and_stay_empty_go(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with hold_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "file"]
    with hold_folder(tmp_path / "a"):
        (tmp_path / "a" / "file").unlink()
    assert (tmp_path / "a").is_dir()  # it was there before


def test_a_lock_that_its_holder_removes_meanwhile_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, lock = tmp_path / "out", tmp_path / ".out.fedapt-lock"
    real, taken = fcntl.flock, []

    def flock(handle: int, operation: int) -> None:
        if not taken:
            lock.unlink()  # opened, and gone before it is locked
        taken.append(handle)
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with hold_file(out):
        assert lock.is_file()
        with pytest.raises(Held), hold_file(out):
            pass
    assert len(taken) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": null}', '{"pid": 1, "host": "h", "since": 9e99}']
)
def test_a_holder_that_cannot_be_read_is_told_as_such(tmp_path: Path, text: str) -> None:
    lock = tmp_path / ".out.fedapt-lock"
    with lock.open("w") as stream:
        stream.write(text)
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(Held) as told, hold_file(tmp_path / "out"):
            pass
    assert told.value.holder == "another process"
    assert lock.read_text() == text


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="has no locks: a second job"), hold_file(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), hold_file(tmp_path / "none" / "out"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"exists|Not a directory"), hold_folder(tmp_path / "file"):
        pass
