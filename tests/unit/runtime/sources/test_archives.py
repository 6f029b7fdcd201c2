"""Archives: links in them, what is left out, their cost, and what is damaged."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedapt_runtime.errors import ImageError, InputError
from fedapt_runtime.formats import LeftOut
from fedapt_runtime.sources import Member, archives, find_images, tar


def read(*paths: object) -> tuple[dict[str, bytes | str], dict[str, int]]:
    """Member -> its bytes, or what was found wrong; and what was left out."""
    left_out = LeftOut()
    found: dict[str, bytes | str] = {}
    for item in find_images([str(p) for p in paths], left_out):
        assert isinstance(item, Member)
        name = item.name.partition("::")[2]
        try:
            found[name] = item.read()
        except ImageError as error:
            found[name] = error.found
    return found, dict(left_out)


def write_tar(path: Path, *members: tuple[str, bytes | tarfile.TarInfo]) -> Path:
    mode = {".tar": "w:", ".tgz": "w:gz", ".txz": "w:xz"}[path.suffix]
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(content, bytes) else content
            info.name = name
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                archive.addfile(info)
    return path


def link(target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_links_in_a_tar_are_read_as_what_they_lead_to(tmp_path: Path, suffix: str) -> None:
    path = write_tar(
        tmp_path / f"a{suffix}",
        ("./p/hard.jpg", link("./p/a.jpg", tarfile.LNKTYPE)),
        ("p/soft.jpg", link("../q/b.jpg")),
        ("p/chain.jpg", link("soft.jpg")),
        ("p/blob.jpg", link("../q/no_suffix")),
        ("./p/a.jpg", b"A"),
        ("q/b.jpg", b"B"),
        ("q/no_suffix", b"C"),
        ("p/loop.jpg", link("loop.jpg")),
        ("p/out.jpg", link("/etc/a.jpg")),
        ("p/hidden.txt", link("a.jpg")),
        ("p/pipe.jpg", link("", tarfile.FIFOTYPE)),
    )
    found, left_out = read(path)
    assert found == {
        "./p/a.jpg": b"A",
        "q/b.jpg": b"B",
        "./p/hard.jpg": b"A",
        "p/soft.jpg": b"B",
        "p/chain.jpg": b"B",
        "p/blob.jpg": b"C",
    }
    assert left_out == {
        "links without a target in the archive": 2,
        ".txt files": 1,
        "files with other suffixes": 1,
        "pipes, devices and other special files": 1,
    }


def test_links_in_a_zip_are_read_as_what_they_lead_to(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("p/a.jpg", b"A")
        links = {"p/b.jpg": "a.jpg", "q/c.jpg": "../p/b.jpg", "l.jpg": "l.jpg", "o.jpg": "/x.jpg"}
        for name, target in links.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    found, left_out = read(path)
    assert found == {"p/a.jpg": b"A", "p/b.jpg": b"A", "q/c.jpg": b"A"}
    assert left_out == {"links without a target in the archive": 2}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_leaves_out_what_a_folder_does(tmp_path: Path, kind: str) -> None:
    names = ["a.jpg", "._a.jpg", "__MACOSX/a.jpg", "__MACOSX/b.jpg", ".h/a.jpg", "n.txt", "b.jfif"]
    for name in names:
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(b"x")
    folder, path = LeftOut(), tmp_path / f"p.{kind}"
    n_folder = len(list(find_images([tmp_path / "p"], folder)))
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.write(tmp_path / "p" / name, name)
    else:
        write_tar(path, *((name, b"x") for name in names))
    found, left_out = read(path)
    assert (list(found), left_out) == (["a.jpg", "b.jfif"], dict(folder))
    assert n_folder == 2


METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_member_is_one_row_whatever_its_compression(tmp_path: Path, method: int) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in "abc":
            archive.writestr(f"{name}.jpg", os.urandom(500) * 3)
    data = bytearray(path.read_bytes())
    at = data.index(b"b.jpg") + 5
    data[at : at + 200] = bytes(byte ^ 0x5A for byte in data[at : at + 200])
    path.write_bytes(data)
    found, _ = read(path)
    assert [type(found[f"{name}.jpg"]) for name in "abc"] == [bytes, str, bytes]
    assert str(found["b.jpg"]).startswith("a damaged archive member (")


def test_an_unknown_compression_and_a_password_are_one_row_each(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in "abc":
            archive.writestr(f"{name}.jpg", b"x")
    data = bytearray(path.read_bytes())
    directory = [i for i in range(len(data)) if data.startswith(b"PK\1\2", i)]
    data[directory[0] + 10] = 97
    data[directory[1] + 8] |= 1
    path.write_bytes(data)
    found, _ = read(path)
    assert found["c.jpg"] == b"x"
    assert "compression" in str(found["a.jpg"])
    assert "encrypted" in str(found["b.jpg"])


def test_a_name_that_is_flagged_utf8_and_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("é.jpg", b"x")
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xe9\xe9"))
    with pytest.raises(
        InputError, match=r"a\.zip: found a damaged archive \(UnicodeDecodeError: 'utf-8'"
    ):
        list(find_images([path]))


def test_members_of_one_zip_are_read_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    contents = {f"{i}.jpg": os.urandom(20_000) for i in range(60)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    with ThreadPoolExecutor(8) as pool:
        members = [m for m in find_images([path] * 3) if isinstance(m, Member)]
        found = list(pool.map(lambda member: member.read(), members))
    assert found == [*contents.values()] * 3


def test_the_directory_of_a_zip_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(50):
            archive.writestr(f"{i}.jpg", b"x")
    opened: list[object] = []
    real = zipfile.ZipFile

    def count(*arguments: object, **options: object) -> zipfile.ZipFile:
        opened.append(arguments)
        return real(*arguments, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(archives.zipfile, "ZipFile", count)
    assert len(read(path)[0]) == 50
    assert len(opened) == 1
    listed = tmp_path / "l.txt"
    listed.write_text("".join(f"{path}::{i}.jpg\n" for i in range(50)))
    assert len(read(listed)[0]) == 50
    assert len(opened) == 2


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize(("size", "fits"), [(1 << 20, True), ((1 << 20) + 1, False)])
def test_a_long_header_is_refused_beyond_its_limit(
    tmp_path: Path, kind: bytes, size: int, fits: bool
) -> None:
    head = tarfile.TarInfo("x")
    head.type, head.size = kind, size
    if kind == tarfile.GNUTYPE_LONGNAME:
        body = b"d/" * ((size - 6) // 2) + b"a.jpg\0"
        body = body.rjust(size, b"d")
    else:
        text = b" comment=" + b"c" * size
        record = str(size).encode() + text
        body = record[: size - 1] + b"\n"
    image = tarfile.TarInfo("a.jpg")
    image.size = 1
    path = tmp_path / "a.tar"
    padding = bytes(-size % 512)
    path.write_bytes(
        head.tobuf() + body + padding + image.tobuf() + b"x".ljust(512, b"\0") + bytes(1024)
    )
    found, _ = read(path)
    if fits:
        assert list(found.values()) == [b"x"]
    else:
        assert list(found.values()) == [f"a damaged archive (a header of {size:,} bytes)"]


def test_a_name_of_gigabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(head.tobuf() + bytes(1 << 22)))
    tracemalloc.start()
    found, _ = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(found.values()) == ["a damaged archive (a header of 1,073,741,824 bytes)"]
    assert peak < 2_000_000


def test_headers_of_a_tar_are_not_kept(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", *((f"{i}.jpg", b"x") for i in range(1000)))

    def walk() -> Iterator[int]:
        for i, _ in enumerate(find_images([path])):
            if i in (100, 900):
                yield tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    early, late = walk()
    tracemalloc.stop()
    assert late - early < 100_000  # 800 headers are 600 kB


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_a_file_at_the_limit_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    for module in (archives, tar):
        monkeypatch.setattr(module, "MAX_FILE_BYTES", 10)
    members = [("a.jpg", b"x" * 10), ("b.jpg", b"x" * 11)]
    if suffix == ".zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for member in members:
                archive.writestr(*member)
    else:
        write_tar(tmp_path / "a.tar", *members)
    found, _ = read(tmp_path / f"a{suffix}")
    assert found == {"a.jpg": b"x" * 10, "b.jpg": "a file of 11 bytes, over the limit of 10"}


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".txz"])
def test_what_stands_behind_the_end_of_a_tar_is_not_lost_without_a_word(
    tmp_path: Path, suffix: str
) -> None:
    plain = [
        write_tar(tmp_path / f"{name}.tar", (f"{name}.jpg", name.encode() * 700)).read_bytes()
        for name in "ab"
    ]
    pack = {".tar": bytes, ".tgz": gzip.compress, ".txz": lzma.compress}[suffix]
    path = tmp_path / f"both{suffix}"
    path.write_bytes(pack(b"".join(plain)))
    rows = [(item.name, item) for item in find_images([path]) if isinstance(item, Member)]
    assert [name for name, _ in rows] == [f"{path}::a.jpg"] * 2  # the last place that was reached
    assert rows[0][1].read() == b"a" * 700
    with pytest.raises(ImageError, match="data after the end of the archive, such as a second"):
        rows[1][1].read()
    # zeros are what every writer of tapes leaves there
    path.write_bytes(pack(plain[0] + bytes(3 << 20)))
    assert read(path) == ({"a.jpg": b"a" * 700}, {})


def test_a_second_stream_of_gzip_is_told(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", ("a.jpg", b"x" * 90), ("b.jpg", b"y" * 9000)).read_bytes()
    (tmp_path / "a.tgz").write_bytes(gzip.compress(whole[:4000]) + gzip.compress(whole[4000:]))
    found, _ = read(tmp_path / "a.tgz")
    assert found["a.jpg"] == b"x" * 90
    assert "a damaged archive" in str(found["b.jpg"])


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out_of_an_archive_are_only_names(tmp_path: Path, kind: str) -> None:
    names = ["/etc/a.png", "../../b.png", "a//c.png", "./d.png", "line\nbreak.png", "-e.png"]
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        write_tar(path, *((name, name.encode()) for name in names))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, name)
    expected = {name: name.encode() for name in names}
    assert read(path) == (expected, {})
    assert read(*(f"{path}::{name}" for name in names)) == (expected, {})


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_each_of_two_members_of_one_name_is_a_row(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        write_tar(path, ("a.png", b"1"), ("a.png", b"22"))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.png", "1")
            archive.writestr("a.png", "22")
    assert [m.read() for m in find_images([path]) if isinstance(m, Member)] == [b"1", b"22"]


def test_zip64_and_a_zip_behind_a_program(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w") as archive,
        archive.open("a.png", "w", force_zip64=True) as member,
    ):
        member.write(b"x" * 90)
    assert read(tmp_path / "a.zip") == ({"a.png": b"x" * 90}, {})
    (tmp_path / "b.zip").write_bytes(b"#!/bin/sh\n" * 40 + (tmp_path / "a.zip").read_bytes())
    assert read(tmp_path / "b.zip") == ({"a.png": b"x" * 90}, {})
