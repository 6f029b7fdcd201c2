"""Images from a CSV or Parquet table of path, class and domain."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedapt.core.config import DataConfig
from fedapt.core.errors import DataError, DependencyError
from fedapt.data.collection import open_collection
from fedapt.data.folders import scan_folders
from fedapt.data.tables import is_table, read_table

ROWS = [
    ("photo/mug/1.png", "mug", "photo"),
    ("photo/mug/0.png", "mug", "photo"),
    ("photo/lap_top/0.png", "lap_top", "photo"),
    ("sketch/mug/0.png", "mug", "sketch"),
    ("sketch/lap_top/0.png", "lap_top", "sketch"),
]


def write_csv(path: Path, rows: list[tuple[str, ...]], header: str = "path,class,domain") -> Path:
    lines = [header, *(",".join(f'"{value}"' for value in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def write_parquet(path: Path, rows: list[tuple[Any, ...]], names: tuple[str, ...]) -> Path:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    parquet.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), path)
    return path


def write_images(root: Path) -> None:
    for i, (name, _, _) in enumerate(ROWS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(root / name)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_lists_what_the_folders_hold(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path)
    if kind == "csv":
        table = write_csv(tmp_path / "images.csv", ROWS)
    else:
        table = write_parquet(tmp_path / "images.parquet", ROWS, ("path", "class", "domain"))
    assert scan_folders(table) == scan_folders(tmp_path)
    assert scan_folders(table, {"mug": "cup"}, domain="sketch").class_names == ("lap top", "cup")


def test_other_columns_and_absolute_paths_are_taken(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    rows = [(domain, "x", str(tmp_path / "images" / path), name) for path, name, domain in ROWS]
    table = write_csv(tmp_path / "t.csv", rows, "domain,note,path,class")
    collection = open_collection(DataConfig(root=str(table), test_fraction=0.0))
    assert collection.classes == ("lap top", "mug")
    assert collection.paths("train")[0] == tmp_path / "images" / "photo" / "lap_top" / "0.png"
    assert all(path.is_file() for path in collection.paths("train"))
    assert len(collection.paths("train")) == 5


@pytest.mark.parametrize(
    ("rows", "header", "found"),
    [
        ([], "path,class,domain", "no images"),
        (ROWS, "path,label,domain", "no column 'class' among path, label, domain"),
        ([*ROWS, ("a.png", "", "photo")], "path,class,domain", "no class in row 6"),
        (
            [*ROWS, ROWS[1]],
            "path,class,domain",
            f"the image {ROWS[1][0]!r} twice, again in row 6",
        ),
        ([("a.png", "mug")], "path,class,domain", "no domain in row 1"),
    ],
)
def test_a_wrong_table_is_refused(
    tmp_path: Path, rows: list[tuple[str, ...]], header: str, found: str
) -> None:
    table = write_csv(tmp_path / "t.csv", rows, header)
    with pytest.raises(DataError, match=r"expected a CSV or Parquet table with the col") as caught:
        scan_folders(table)
    assert caught.value.found == found


def test_a_table_that_is_not_there_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found No such file or directory"):
        scan_folders(tmp_path / "t.csv")
    (tmp_path / "u.csv").write_bytes(b"path,class,domain\n\xff\xfe\xfa")
    with pytest.raises(DataError, match=r"found .*decode"):
        scan_folders(tmp_path / "u.csv")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (tmp_path / "v.parquet").write_bytes(b"PAR1" * 10)
    with pytest.raises(DataError, match="expected a CSV or Parquet table"):
        scan_folders(tmp_path / "v.parquet")


def test_parquet_values_that_are_no_text_are_read(tmp_path: Path) -> None:
    rows = [("a.png", 3, "photo"), ("b.png", 4, "photo")]
    table = write_parquet(tmp_path / "t.parquet", rows, ("path", "class", "domain"))
    assert read_table(table) == {"photo": {"3": ["a.png"], "4": ["b.png"]}}
    none = write_parquet(
        tmp_path / "n.parquet", [*rows, ("c.png", None, "photo")], ("path", "class", "domain")
    )
    with pytest.raises(DataError, match="found no class in row 3"):
        read_table(none)


def test_without_pyarrow_csv_is_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DependencyError, match=r"pip install 'fedapt\[tables\]', or write the tab"):
        scan_folders(tmp_path / "t.parquet")


def test_a_folder_named_like_a_table_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "images.csv").mkdir()
    assert not is_table(tmp_path / "images.csv")
    assert is_table(tmp_path / "IMAGES.CSV")
    assert not is_table(tmp_path / "images")
