"""What paths stand for: files, folders, patterns, lists, archives, standard input."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from fedapt_runtime import formats
from fedapt_runtime.errors import ImageError, InputError
from fedapt_runtime.sources import Member, archives, count_images, find_images, tar

NAMES = ("a.png", "k/b.JPG", "k/notes.txt", "k/k/c.webp")
IMAGES = ("a.png", "k/b.JPG", "k/k/c.webp")


def png(colour: int = 10) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 3), (colour, colour, colour)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate(NAMES):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(10 * i))
    return tmp_path / "in"


def pack(folder: Path, suffix: str) -> Path:
    """The folder's files, in the order of NAMES, which is not the sorted one."""
    path = folder.parent / f"packed{suffix}"
    order = [NAMES[1], NAMES[0], *NAMES[2:]]
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.mkdir("k")
            for name in order:
                archive.write(folder / name, name)
    else:
        mode = {".tar": "w", ".tgz": "w:gz", ".tar.gz": "w:gz", ".tar.bz2": "w:bz2"}.get(
            suffix, "w:xz"
        )
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            archive.add(folder / "k", "k", recursive=False)
            for name in order:
                archive.add(folder / name, name)
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_the_images_of_an_archive_in_its_order(folder: Path, suffix: str) -> None:
    path = pack(folder, suffix)
    found = list(find_images([path]))
    names = [IMAGES[1], IMAGES[0], IMAGES[2]]
    assert [item.name for item in found if isinstance(item, Member)] == [
        f"{path}::{name}" for name in names
    ]
    read = [item.read() for item in found if isinstance(item, Member)]
    assert read == [(folder / name).read_bytes() for name in names]
    assert count_images([path]) == (3 if suffix == ".zip" else None)


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_an_archive_without_images_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "in" / "k").mkdir(parents=True)
    for name in NAMES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("")
    path = pack(tmp_path / "in", suffix)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "SUFFIXES", {".gif": "GIF"})
        text = r"packed\.\w+: found an archive without images, with \.jpg files \(1\), \.png "
        with pytest.raises(InputError, match=text):
            list(find_images([path]))


def test_a_damaged_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"x\.zip: found a damaged archive \(File is not a zip"):
        list(find_images([path]))


def test_a_damaged_member_of_a_zip_is_an_error_of_its_own(folder: Path) -> None:
    path = pack(folder, ".zip")
    data = bytearray(path.read_bytes())
    place = data.index((folder / IMAGES[1]).read_bytes()[8:])  # stored: not compressed
    data[place + 20] ^= 0xFF
    path.write_bytes(bytes(data))
    first, second, third = (item for item in find_images([path]) if isinstance(item, Member))
    with pytest.raises(ImageError, match=r"found a damaged archive member \(Bad CRC-32"):
        first.read()
    assert second.read() == (folder / IMAGES[0]).read_bytes()
    assert third.read() == (folder / IMAGES[2]).read_bytes()


def test_a_tar_that_ends_early_gives_what_it_has_and_one_error(folder: Path) -> None:
    path = pack(folder, ".tgz")
    whole = list(find_images([path]))
    path.write_bytes(path.read_bytes()[:-40])
    found = [item for item in find_images([path]) if isinstance(item, Member)]
    assert 1 <= len(found) <= len(whole)
    with pytest.raises(ImageError, match=r"packed\.tgz.*: found a damaged archive \("):
        found[-1].read()


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_a_member_over_the_limit_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    for module in (archives, tar):
        monkeypatch.setattr(module, "MAX_FILE_BYTES", 10)
    found = [item for item in find_images([pack(folder, suffix)]) if isinstance(item, Member)]
    assert len(found) == 3
    for item in found:
        with pytest.raises(ImageError, match=r"found a file of \d+ bytes, over the limit of 10;"):
            item.read()


def test_a_list_and_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b"a.png\r\n\ncaf\xe9 \xff.png\n nowhere.png \nlast.png"
    expected = ["a.png", os.fsdecode(b"caf\xe9 \xff.png"), " nowhere.png ", "last.png"]
    for name in ("list.txt", "LIST.LST"):
        (folder / name).write_bytes(lines)
        assert list(find_images([folder / name])) == expected
        assert count_images([folder / name]) == 4
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert list(find_images(["-"])) == expected
    assert count_images(["-"]) is None


@pytest.mark.parametrize("lines", [b"", b"\r\n\n"])
def test_a_list_without_a_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: bytes
) -> None:
    (tmp_path / "list.txt").write_bytes(lines)
    text = "found a list without images; expected paths of images"
    with pytest.raises(InputError, match=rf"list\.txt: {text}"):
        count_images([tmp_path / "list.txt"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    with pytest.raises(InputError, match=f"stdin: {text}"):
        list(find_images(["-"]))


def test_a_pattern_gives_the_images_that_match_sorted(folder: Path) -> None:
    every = [str(folder / name) for name in sorted(IMAGES)]
    assert list(find_images([folder / "**" / "*"])) == every
    assert list(find_images([folder / "k" / "*.JPG"])) == [str(folder / "k" / "b.JPG")]
    assert count_images([folder / "**" / "*"]) == 3
    with pytest.raises(InputError, match=r"\*\.gif: found a pattern without images"):
        list(find_images([folder / "*.gif"]))


def test_a_file_whose_name_is_a_pattern_stands_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "a[1]*.png"
    path.write_bytes(png())
    assert list(find_images([path])) == [str(path)]


def test_counting_adds_up_and_refuses_what_is_not_there(folder: Path) -> None:
    assert count_images([folder, folder / "a.png", pack(folder, ".zip")]) == 3 + 1 + 3
    assert count_images([folder, pack(folder, ".tar")]) is None
    for gone in ("none.png", "none.tar", "none.zip", "none.txt"):
        with pytest.raises(InputError, match=rf"{gone}: found no such file or folder"):
            count_images([folder, folder / gone])
