"""Class names: what the tokenizer reads alike, and how they are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedapt.core.errors import DataError
from fedapt.data.class_names import class_key, class_name, split_class_names
from fedapt.data.folders import scan_folders
from fedapt.data.splits import split_folders
from fedapt.model.open_clip_import import import_open_clip

ALIKE = [
    ("caf\u00e9", "cafe\u0301"),
    ("Bike", "bike"),
    ("a  b", "a\u00a0b"),
    ("fish &amp; chips", "fish & chips"),
    ("\ufb01sh", "fish"),
    ("\uff21\uff22", "AB"),
    ("sch\u00f6n", "sch\u00c3\u00b6n"),
]
DIFFERENT = [("cafe", "caf\u00e9"), ("a b", "ab"), ("stra\u00dfe", "strasse"), ("x1", "x2")]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_equal_keys_are_equal_tokens(one: str, other: str) -> None:
    encode = import_open_clip().SimpleTokenizer().encode
    assert class_key(one) == class_key(other)
    assert encode(one) == encode(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_keys_are_other_tokens(one: str, other: str) -> None:
    encode = import_open_clip().SimpleTokenizer().encode
    assert class_key(one) != class_key(other)
    assert encode(one) != encode(other)


def test_names_of_folders() -> None:
    assert class_name("laptop_computer") == class_name("laptop-computer") == "laptop computer"
    assert class_name("cafe\u0301") == "caf\u00e9"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("mug,bike", ("mug", "bike")),
        (' mug , "salt, pepper" ,pen', ("mug", "salt, pepper", "pen")),
        ('"say ""hi""",b', ('say "hi"', "b")),
        ("a,,b", ("a", "", "b")),
        ("", ("",)),
        ("a\nb,c", ("a b", "c")),
    ],
)
def test_names_with_commas_between_them(text: str, names: tuple[str, ...]) -> None:
    assert split_class_names(text) == names


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def test_composed_and_decomposed_folders_are_refused_and_told_apart(tmp_path: Path) -> None:
    touch(tmp_path, "a/caf\u00e9/1.png", "b/cafe\u0301/1.png", "a/mug/1.png", "b/mug/1.png")
    text = r"the classes 'cafe\\u0301' and 'caf\\xe9', both read as 'caf\u00e9'; expected class"
    with pytest.raises(DataError, match=text):
        scan_folders(tmp_path)


def test_a_decomposed_folder_has_the_composed_name(tmp_path: Path) -> None:
    touch(tmp_path, "a/cafe\u0301/1.png", "a/mug/1.png")
    assert scan_folders(tmp_path).class_names == ("caf\u00e9", "mug")
    assert scan_folders(tmp_path, {"caf\u00e9": "bar"}).class_names == ("bar", "mug")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_split_files_of_other_systems(tmp_path: Path, encoding: str) -> None:
    touch(tmp_path, *(f"a/cafe\u0301/{i}.png" for i in range(4)), "a/mug/x y.png")
    for part, names in (
        ("train", ["caf\u00e9/0", "caf\u00e9/1", "mug/x y"]),
        ("test", ["caf\u00e9/2"]),
    ):
        lines = "".join(f"a/{name}.png 0\r\n" for name in names)
        (tmp_path / f"a_{part}.txt").write_bytes(lines.encode(encoding))
    split = split_folders(scan_folders(tmp_path), 0.5, 0)
    train = [sample.path for sample in split.train["a"]]
    assert train == ["a/cafe\u0301/0.png", "a/cafe\u0301/1.png", "a/mug/x y.png"]
    assert [sample.path for sample in split.test["a"]] == ["a/cafe\u0301/2.png"]
