"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedapt.core import files
from fedapt.core.errors import FileError
from fedapt.core.files import (
    cache_folder,
    check_cache,
    hash_file,
    make_folder,
    replace_file,
    write_bytes,
    write_text,
)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(path: Path, error: BaseException) -> None:
    with replace_file(path) as temporary:
        temporary.write_text("half")
        raise error


def test_the_new_file_takes_the_place_of_the_old_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with replace_file(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent.parent == path.parent  # a rename across file systems is no rename
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file.txt"]


def test_the_old_file_stays_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError, match="in the block"):
        write_half(path, ZeroDivisionError("in the block"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_no_file_appears_when_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "file.txt", KeyboardInterrupt())
    assert names(tmp_path) == []


def test_a_full_disk_is_told_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(FileError, match=r"file\.txt: found No space left on device; .*free space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_the_data_is_flushed_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    existed: list[bool] = []
    monkeypatch.setattr(files.os, "fsync", lambda _: existed.append(path.exists()))
    write_text(path, "new")
    assert existed == [False]
    assert path.exists()


def test_missing_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"


def test_a_file_in_the_way_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(FileError, match="found Not a directory; expected a file that can be"):
        write_text(tmp_path / "a" / "b" / "file.txt", "x")


def test_a_folder_in_the_way_of_the_file_is_told_and_stays(tmp_path: Path) -> None:
    (tmp_path / "file.txt").mkdir()
    with pytest.raises(FileError, match="found Is a directory; expected a file that can be"):
        write_text(tmp_path / "file.txt", "x")
    assert names(tmp_path) == ["file.txt"]
    assert (tmp_path / "file.txt").is_dir()


def test_text_is_utf_8_with_its_line_ends_as_given(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "é\r\n☃\n")
    assert (tmp_path / "file.txt").read_bytes() == b"\xc3\xa9\r\n\xe2\x98\x83\n"


@pytest.mark.usefixtures("umask")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "x")
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o640
    assert os.umask(0o027) == 0o027  # looking at it has not changed it


def make_half(path: Path) -> None:
    with make_folder(path) as temporary:
        (temporary / "file").write_text("half")
        raise KeyboardInterrupt


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    place = tmp_path / "above" / "new"
    with make_folder(place) as temporary:
        (temporary / "file").write_text("text")
        assert not place.exists()
        assert stat.S_IMODE(temporary.stat().st_mode) == stat.S_IMODE(place.parent.stat().st_mode)
    assert (names(place), names(place.parent)) == (["file"], ["new"])


def test_no_folder_appears_when_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_half(tmp_path / "new")
    assert names(tmp_path) == []


def test_a_folder_has_one_maker(tmp_path: Path) -> None:
    place = tmp_path / "new"
    told = rf"found an output that process {os.getpid()} on .+ is writing; expected one job"
    with make_folder(place), pytest.raises(FileError, match=told), make_folder(place):
        pytest.fail("two jobs make one folder")
    told = "found a folder or file; expected a new folder"
    with pytest.raises(FileError, match=told), make_folder(place):
        pytest.fail("a folder is written over")
    assert names(tmp_path) == ["new"]


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_hash_file_is_sha_256(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(data[:size])
    assert hash_file(tmp_path / "file") == hashlib.sha256(data[:size]).hexdigest()


def test_hash_file_of_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file or directory; expected a readable file"):
        hash_file(tmp_path / "absent")
    with pytest.raises(FileError, match="Is a directory; expected a readable file"):
        hash_file(tmp_path)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FEDAPT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"FEDAPT_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/fedapt"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/fedapt"),
        ({"XDG_CACHE_HOME": ""}, "/home/someone/.cache/fedapt"),
        ({}, "/home/someone/.cache/fedapt"),
    ],
)
def test_where_the_cache_is(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("FEDAPT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_a_cache_that_cannot_be_written_is_told_with_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDAPT_CACHE", str(tmp_path / "new" / "cache"))
    check_cache()
    assert names(tmp_path / "new" / "cache") == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDAPT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FileError, match=r"the cache .*/file/cache: .*To do: set FEDAPT_CACHE to"):
        check_cache()


def test_a_user_without_a_home_is_told_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("FEDAPT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(FileError, match=r"a user without a home folder; .*set FEDAPT_CACHE to"):
        cache_folder()
