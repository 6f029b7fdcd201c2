"""Lists and tables as people's tools write them, and the outputs of other jobs."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from fedapt_runtime.errors import ImageError, InputError
from fedapt_runtime.formats import LeftOut
from fedapt_runtime.sources import Member, find_images, lists, tar

NAMES = ["a.jpg", "b c.jpg", "ä/€.png", "s3://bucket/x.jpg"]


def texts() -> dict[str, bytes]:
    lines, windows = "\n".join(NAMES), "".join(f"{name}\r\n" for name in NAMES)
    return {
        "plain": lines.encode(),
        "mark": b"\xef\xbb\xbf" + windows.encode(),
        "utf-16 little": b"\xff\xfe" + windows.encode("utf-16-le"),
        "utf-16 big": b"\xfe\xff" + windows.encode("utf-16-be"),
        "utf-16 without a mark": windows.encode("utf-16-le"),
        "carriage returns alone": "\r".join(NAMES).encode(),
        "print0": b"".join(name.encode() + b"\0" for name in NAMES),
        "print0 without its end": "\0".join(NAMES).encode(),
        "empty lines": ("\r\n\n" + "\n\n".join(NAMES) + "\n\n").encode(),
    }


class Slow(io.RawIOBase):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size = io.BytesIO(data), size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = self._data.read(min(self._size, len(buffer)))
        buffer[: len(data)] = data
        return len(data)


@pytest.mark.parametrize("kind", texts())
def test_every_kind_of_text_gives_the_same_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data = texts()[kind]
    (tmp_path / "l.txt").write_bytes(data)
    assert list(find_images([tmp_path / "l.txt"])) == NAMES
    for size in (1, 3, 1000):
        stdin = io.TextIOWrapper(io.BufferedReader(Slow(data, size)))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert list(find_images(["-"])) == NAMES


def test_names_with_line_breaks_between_nuls(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"a\nb.jpg\0c\r\n.jpg\0")
    assert list(find_images([tmp_path / "l.txt"])) == ["a\nb.jpg", "c\r\n.jpg"]


def test_bytes_that_are_no_text_are_kept(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"\xe9 \xff.jpg\n")
    assert list(find_images([tmp_path / "l.txt"])) == [os.fsdecode(b"\xe9 \xff.jpg")]


def test_half_a_character_of_utf16_is_told(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"\xff\xfea\0.\0j\0p\0g")
    with pytest.raises(
        InputError, match=r"found a list that cannot be read \(UnicodeDecodeError: 'utf-16"
    ):
        list(find_images([tmp_path / "l.txt"]))


def test_a_line_without_end_is_told(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"a" * (17 << 20))
    with pytest.raises(InputError, match="a line of more than 16,777,216 bytes"):
        list(find_images([tmp_path / "l.txt"]))


def test_a_text_without_a_line_is_not_read_to_its_end() -> None:
    class Endless(io.RawIOBase):
        n_bytes = 0

        def read(self, size: int = -1) -> bytes:
            self.n_bytes += size
            return b"a" * size

    stream = Endless()
    with pytest.raises(ValueError, match="a line of more than 16,777,216 bytes"):
        list(lists._read_lines(stream))
    assert stream.n_bytes < 2 * (17 << 20)


@pytest.mark.parametrize("closed", [None, io.StringIO()])
def test_a_closed_standard_input_is_told(
    monkeypatch: pytest.MonkeyPatch, closed: io.StringIO | None
) -> None:
    if closed is not None:
        closed.close()
    monkeypatch.setattr(sys, "stdin", closed)
    with pytest.raises(InputError, match="stdin: found a closed standard input"):
        list(find_images(["-"]))


def write_table(path: Path, names: list[str]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"label": "x", "path": n}) + "\n" for n in names))
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as stream:
            csv.writer(stream).writerows([["label", "path"], *(["x", name] for name in names)])
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"label": ["x"] * len(names), "path": names}), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_tables_of_paths(tmp_path: Path, suffix: str) -> None:
    names = [*NAMES, 'with "quotes", and commas.jpg', "line\nbreak.jpg"]
    path = write_table(tmp_path / f"t{suffix}", names)
    assert list(find_images([path])) == names
    write_table(path, [])
    with pytest.raises(InputError, match="found a table without images; expected paths of images"):
        list(find_images([path]))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.jsonl", b'{"path": null}\n{"path": "a.jpg"}\n\n{"path": ""}\n'),
        ("t.csv", b"label,path\nx\n\ny,a.jpg\nz,\n"),
    ],
)
def test_rows_without_a_path_are_counted(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    left_out = LeftOut()
    assert list(find_images([tmp_path / name], left_out)) == ["a.jpg"]
    assert left_out == {"table rows without a path": 2}


def test_rows_of_parquet_without_a_path_are_counted(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"path": [None, "a.jpg", ""]}), tmp_path / "t.parquet")
    left_out = LeftOut()
    assert list(find_images([tmp_path / "t.parquet"], left_out)) == ["a.jpg"]
    assert left_out == {"table rows without a path": 2}


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("t.jsonl", b"no json\n", r"a table that cannot be read \(Expecting value"),
        ("t.jsonl", b'{"label": 1}\n', r"a table that cannot be read \(KeyError: 'path'"),
        ("t.jsonl", b'{"path": 7}\n', "a column path with a int, 7"),
        ("t.jsonl", b'{"path": "\\ud800.jpg"}\n', r"a table that cannot be read \("),
        ("t.jsonl", b"[" * 100_000 + b"\n", r"a table that cannot be read \(RecursionError"),
        ("t.csv", b"name,label\na,b\n", "a table without the column path"),
        ("t.csv", b'path\n"' + b"a" * 200_000, r"a table that cannot be read \(field larger"),
    ],
)
def test_damaged_tables_are_told(tmp_path: Path, name: str, data: bytes, found: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"{name}: found {found}"):
        list(find_images([tmp_path / name]))


def test_parquet_may_hold_names_as_bytes(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    table = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"path": [b"a.jpg", b"\xe9.jpg", None]}), table)
    assert list(find_images([table])) == ["a.jpg", os.fsdecode(b"\xe9.jpg")]
    parquet.write_table(pyarrow.table({"path": [1, 2]}), table)
    with pytest.raises(InputError, match="found a column path with a int, 1"):
        list(find_images([table]))


def test_names_that_a_table_escaped_are_found_again(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(raw)).touch()
    (tmp_path / r"real\x41.jpg").touch()
    names = [f"{tmp_path}/caf\\xe9.jpg", f"{tmp_path}/real\\x41.jpg"]
    found = list(find_images([write_table(tmp_path / "t.parquet", names)]))
    assert found == [os.fsdecode(raw), names[1]]


def write_archives(folder: Path, names: list[str]) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for name in names:
            archive.writestr(name, name)
    for suffix, mode in ((".tar", "w:"), (".tgz", "w:gz")):
        with tarfile.open(folder / f"a{suffix}", mode) as solid:  # type: ignore[call-overload]
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(name)
                solid.addfile(info, io.BytesIO(name.encode()))
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.LNKTYPE, names[0]
            solid.addfile(link)


def contents(found: object) -> str:
    assert isinstance(found, Member)
    try:
        return found.read().decode()
    except ImageError as error:
        return error.found


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
def test_members_of_archives_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    names = ["1.jpg", "k/2.jpg", "3::4.jpg"]
    write_archives(tmp_path, names)
    monkeypatch.chdir(tmp_path)
    archive = f"a{suffix}"
    rows = [item.name for item in find_images([archive]) if isinstance(item, Member)]
    assert rows[:3] == [f"{archive}::{name}" for name in names]
    for given in (rows, rows[::-1], [*rows, *rows]):
        for table in (".txt", ".jsonl", ".csv", ".parquet"):
            path = tmp_path / f"t{table}"
            if table == ".txt":
                path.write_text("\n".join(given))
            else:
                write_table(path, given)
            found = list(find_images([path]))
            assert [item.name for item in found if isinstance(item, Member)] == given
            expected = [names[0] if "link" in row else row.split("::", 1)[1] for row in given]
            assert list(map(contents, found)) == expected
    assert contents(next(find_images([f"{archive}::k/2.jpg"]))) == "k/2.jpg"
    assert contents(next(find_images([f"{archive}::none.jpg"]))) == "no such file in the archive"


def test_a_file_whose_name_looks_like_a_member_stands_for_itself(tmp_path: Path) -> None:
    write_archives(tmp_path, ["1.jpg"])
    (tmp_path / "a.zip::1.jpg").touch()
    listed = tmp_path / "l.txt"
    names = [f"{tmp_path}/a.zip::1.jpg", f"{tmp_path}/none.zip::1.jpg", "x::y.jpg"]
    listed.write_text("\n".join(names))
    assert list(find_images([listed])) == names
    assert list(find_images(names[:1])) == names[:1]


def test_a_damaged_archive_in_a_list_is_a_row(tmp_path: Path) -> None:
    for name in ("b.zip", "b.tgz"):
        (tmp_path / name).write_bytes(b"no archive")
    listed = tmp_path / "l.txt"
    listed.write_text(f"{tmp_path}/b.zip::1.jpg\n{tmp_path}/b.tgz::1.jpg\nlast.jpg\n")
    first, second, last = find_images([listed])
    assert contents(first) == "a damaged archive (File is not a zip file)"
    assert contents(second).startswith("a damaged archive (")
    assert last == "last.jpg"


def test_a_shuffled_list_of_a_solid_archive_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar, "_MAX_REWINDS", 3)
    write_archives(tmp_path, [f"{i}.jpg" for i in range(6)])
    listed = tmp_path / "l.txt"
    listed.write_text("".join(f"{tmp_path}/a.tgz::{i}.jpg\n" for i in (5, 4, 3, 2, 1, 0)))
    found = list(map(contents, find_images([listed])))
    assert found[:4] == ["5.jpg", "4.jpg", "3.jpg", "2.jpg"]
    assert found[4:] == ["the archive read 3 times from its start"] * 2
