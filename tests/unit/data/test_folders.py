"""ROOT/<domain>/<class>/<images>: what is found, what is passed over, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedapt.core.errors import DataError
from fedapt.data.folders import Sample, check_complete, scan_folders


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def test_domains_classes_and_images_are_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b/mug/2.png", "b/mug/10.png", "b/bike/x.jpg", "a/mug/y.JPEG", "a/bike/z.webp")
    folders = scan_folders(tmp_path)
    assert folders.root == tmp_path
    assert folders.domains == ("a", "b")
    assert folders.class_folders == ("bike", "mug")
    assert folders.samples["a"] == (Sample("a/bike/z.webp", 0), Sample("a/mug/y.JPEG", 1))
    assert folders.samples["b"] == (
        Sample("b/bike/x.jpg", 0),
        Sample("b/mug/10.png", 1),
        Sample("b/mug/2.png", 1),
    )


def test_the_classes_are_those_of_all_domains_together(tmp_path: Path) -> None:
    folders = scan_folders(touch(tmp_path, "a/mug/1.png", "b/bike/1.png", "b/bike/2.png"))
    assert folders.class_folders == ("bike", "mug")
    assert folders.counts("a") == [0, 1]
    assert folders.counts("b") == [2, 0]


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a/mug/1.png",
        "a/mug/.2.png",
        "a/mug/notes.txt",
        "a/mug/no_suffix",
        "a/mug/deeper/3.png",
        "a/.cache/4.png",
        ".git/mug/5.png",
        "a/6.png",
        "a_train.txt",
    )
    folders = scan_folders(tmp_path)
    assert folders.domains == ("a",)
    assert folders.class_folders == ("mug",)
    assert folders.samples["a"] == (Sample("a/mug/1.png", 0),)


def test_underscores_and_hyphens_are_read_as_spaces(tmp_path: Path) -> None:
    touch(tmp_path, "a/back_pack/1.png", "a/laptop-computer/1.png", "a/Mug/1.png")
    assert scan_folders(tmp_path).class_names == ("Mug", "back pack", "laptop computer")


def test_a_class_can_have_another_name_in_the_prompt(tmp_path: Path) -> None:
    touch(tmp_path, "a/back_pack/1.png", "a/mug/1.png")
    folders = scan_folders(tmp_path, {"back_pack": "rucksack"})
    assert folders.class_names == ("rucksack", "mug")
    assert folders.class_folders == ("back_pack", "mug")


def test_a_name_for_no_folder_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/back_pack/1.png")
    with pytest.raises(DataError, match=r"the class 'back pack'; expected one of back_pack"):
        scan_folders(tmp_path, {"back pack": "rucksack"})


@pytest.mark.parametrize(
    ("first", "second", "key"),
    [("Mug", "mug", "mug"), ("back pack", "back_pack", "back pack"), ("x-y", "x_y", "x y")],
)
def test_two_classes_of_one_name_are_refused(
    tmp_path: Path, first: str, second: str, key: str
) -> None:
    touch(tmp_path, f"a/{first}/1.png", f"a/{second}/1.png")
    with pytest.raises(DataError, match=f"'{first}' and '{second}', both read as '{key}'"):
        scan_folders(tmp_path)


def test_two_classes_given_one_name_are_refused_and_two_told_apart_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "a/Mug/1.png", "a/mug/1.png")
    assert scan_folders(tmp_path, {"Mug": "cup"}).class_names == ("cup", "mug")
    with pytest.raises(DataError, match="both read as 'cup'"):
        scan_folders(tmp_path, {"Mug": "cup", "mug": " Cup "})


def test_a_class_without_a_name_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/__/1.png", "a/mug/1.png")
    with pytest.raises(DataError, match="a class '__' without a name"):
        scan_folders(tmp_path)
    assert scan_folders(tmp_path, {"__": "anything"}).class_names == ("anything", "mug")


def test_no_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no such file or directory; expected a readable"):
        scan_folders(tmp_path / "absent")
    with pytest.raises(DataError, match="found not a directory; expected a readable folder"):
        scan_folders(touch(tmp_path, "file") / "file")


def test_a_root_without_domains_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", ".hidden/mug/1.png")
    with pytest.raises(DataError, match=r"found no folders; expected ROOT/<domain>/<class>/"):
        scan_folders(tmp_path)


@pytest.mark.parametrize("path", ["b/mug/notes.txt", "b/1.png"])
def test_a_domain_without_images_is_refused(tmp_path: Path, path: str) -> None:
    touch(tmp_path, "a/mug/1.png", path)
    with pytest.raises(DataError, match="b: found a domain without images"):
        scan_folders(tmp_path)


def test_a_root_that_is_one_domain_names_its_parent(tmp_path: Path) -> None:
    touch(tmp_path, "photo/mug/1.png", "photo/bike/1.png")
    with pytest.raises(
        DataError,
        match=rf"photo: found images in its folders, such as bike, and no further folders; "
        rf"expected .*looks like one domain. To do: pass its parent, {tmp_path}",
    ):
        scan_folders(tmp_path / "photo")
    assert scan_folders(tmp_path).domains == ("photo",)


@pytest.mark.parametrize("name", [b"caf\xe9/mug", b"a/caf\xe9"])
def test_a_folder_name_that_is_no_utf_8_is_refused(tmp_path: Path, name: bytes) -> None:
    touch(tmp_path, "a/mug/1.png")
    touch(tmp_path, os.fsdecode(name) + "/1.png")
    with pytest.raises(DataError, match=r"the folder name 'caf\\udce9'; expected .*UTF-8") as e:
        scan_folders(tmp_path)
    assert str(e.value).encode()


def test_a_folder_name_beyond_ascii_is_good(tmp_path: Path) -> None:
    touch(tmp_path, "büro/hängematte/1.png")
    assert scan_folders(tmp_path).class_names == ("hängematte",)


def test_a_missing_class_is_refused_unless_allowed(tmp_path: Path) -> None:
    touch(tmp_path, *(f"a/{name}/1.png" for name in ("bike", "cup", "mug")))
    folders = scan_folders(touch(tmp_path, "b/cup/1.png", "b/mug/1.png"))
    with pytest.raises(DataError, match=r"no images in b/bike; .*allow_missing_classes = true`"):
        check_complete(folders, allow_missing_classes=False)
    check_complete(folders, allow_missing_classes=True)


def test_complete_folders_are_not_refused(tmp_path: Path) -> None:
    paths = [f"{domain}/{name}/1.png" for domain in "ab" for name in ("bike", "mug")]
    folders = scan_folders(touch(tmp_path, *paths))
    check_complete(folders, allow_missing_classes=False)


def test_of_many_missing_classes_five_are_named(tmp_path: Path) -> None:
    touch(tmp_path, *(f"a/{letter}/1.png" for letter in "opqrstuv"), "b/o/1.png", "b/p/1.png")
    with pytest.raises(DataError, match=r"no images in b/q, b/r, b/s, b/t, b/u and others;"):
        check_complete(scan_folders(tmp_path), allow_missing_classes=False)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_domain_of_one_class_is_refused_whatever_is_allowed(
    tmp_path: Path, allowed: bool
) -> None:
    touch(tmp_path, "a/bike/1.png", "a/mug/1.png", "b/mug/1.png", "b/mug/2.png")
    with pytest.raises(
        DataError,
        match="found images of one class only, 'mug'; expected two classes or more in every "
        r"domain\. To do: add images of the other classes, or remove the domain",
    ) as caught:
        check_complete(scan_folders(tmp_path), allow_missing_classes=allowed)
    assert caught.value.where == str(tmp_path / "b")


@pytest.mark.parametrize("allowed", [False, True])
def test_one_class_in_all_is_refused(tmp_path: Path, allowed: bool) -> None:
    folders = scan_folders(touch(tmp_path, "a/mug/1.png", "b/mug/1.png"))
    with pytest.raises(DataError, match="a: found images of one class only, 'mug'"):
        check_complete(folders, allow_missing_classes=allowed)
