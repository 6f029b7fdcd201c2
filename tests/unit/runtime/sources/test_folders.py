"""Folders, links to folders and patterns."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fedapt_runtime.formats import LOOP, SEEN, LeftOut
from fedapt_runtime.sources import find_images


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def find(root: Path, *given: object) -> tuple[list[str], dict[str, int]]:
    left_out = LeftOut()
    found = [str(f) for f in find_images([str(g) for g in given] or [root], left_out)]
    return [os.path.relpath(path, root) for path in found], dict(left_out)


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.txt", "c.txt", ".d.jpg", "._a.jpg", "README", "e/f.jfif")
    touch(tmp_path, ".git/a.jpg", "@eaDir/a.jpg", "e/__MACOSX/a.jpg")
    assert find(tmp_path) == (
        ["a.jpg", "e/f.jfif"],
        {
            ".txt files": 2,
            "hidden files": 1,
            "AppleDouble files of macOS, ._*": 1,
            "files with other suffixes": 1,
            "hidden folders": 1,
            "system folders, such as __MACOSX and @eaDir": 2,
        },
    )


def test_a_link_to_a_folder_elsewhere_is_entered(tmp_path: Path) -> None:
    touch(tmp_path, "p/a.jpg", "p/z.jpg", "other/b.jpg", "other/deep/c.jpg")
    (tmp_path / "p" / "link").symlink_to("../other")
    assert find(tmp_path, tmp_path / "p") == (
        ["p/a.jpg", "p/z.jpg", "p/link/b.jpg", "p/link/deep/c.jpg"],
        {},
    )


def test_loops_and_folders_seen_already_are_told_apart(tmp_path: Path) -> None:
    touch(tmp_path, "p/k/a.jpg", "other/b.jpg")
    (tmp_path / "p" / "up").symlink_to(tmp_path)  # above the folder that was named
    (tmp_path / "p" / "k" / "self").symlink_to(".")
    (tmp_path / "p" / "beside").symlink_to("k")
    (tmp_path / "p" / "one").symlink_to("../other")
    (tmp_path / "p" / "two").symlink_to("../other")
    found, left_out = find(tmp_path, tmp_path / "p")
    assert found == ["p/k/a.jpg", "p/one/b.jpg"]
    assert left_out == {LOOP: 2, SEEN: 2}


def test_a_tree_around_one_that_was_read_gives_the_rest(tmp_path: Path) -> None:
    touch(tmp_path, "p/a.jpg", "other/deep/b.jpg", "other/c.jpg")
    (tmp_path / "p" / "1").symlink_to("../other/deep")
    (tmp_path / "p" / "2").symlink_to("../other")
    found, left_out = find(tmp_path, tmp_path / "p")
    assert found == ["p/a.jpg", "p/1/b.jpg", "p/2/c.jpg"]
    assert left_out == {SEEN: 1}


def test_links_that_lead_to_each_other_end(tmp_path: Path) -> None:
    # every folder links to every other: as many paths as there are orders of them
    names = [f"d{i}" for i in range(9)]
    touch(tmp_path, *(f"{name}/a.jpg" for name in names))
    for one in names:
        for other in names:
            (tmp_path / one / other).symlink_to(f"../{other}")
    found, _ = find(tmp_path)
    assert found == [f"{name}/a.jpg" for name in names]
    found, _ = find(tmp_path, tmp_path / "d3")
    assert (
        sorted(os.path.basename(os.path.realpath(tmp_path / os.path.dirname(f))) for f in found)
        == names
    )


def test_a_folder_as_deep_as_paths_may_be(tmp_path: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1100):  # deeper than calls may nest
            os.mkdir("d")
            os.chdir("d")
        Path("a.jpg").touch()
        os.chdir(here)
        found, _ = find(tmp_path)
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # too deep for shutil
    assert found == ["d/" * 1100 + "a.jpg"]


def test_brackets_in_the_name_of_a_folder_stand_for_themselves(tmp_path: Path) -> None:
    touch(tmp_path, "photos [2024]/a.jpg", "photos [2024]/b.txt", "photos 2/c.jpg")
    touch(tmp_path, "photos [2024]/x/d.jpg")
    given = tmp_path / "photos [2024]"
    assert find(tmp_path, given / "*") == (
        ["photos [2024]/a.jpg"],
        {".txt files": 1, "files with other suffixes": 1},
    )
    assert find(tmp_path, given / "**" / "*.jpg")[0] == [
        "photos [2024]/a.jpg",
        "photos [2024]/x/d.jpg",
    ]
    assert find(tmp_path, tmp_path / "photos [0-9]" / "*.jpg")[0] == ["photos 2/c.jpg"]


def test_brackets_in_the_name_of_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "img[1]a.jpg", "img[1]b.jpg", "img2.jpg")
    assert find(tmp_path, tmp_path / "img[1]*.jpg")[0] == ["img[1]a.jpg", "img[1]b.jpg"]
    assert find(tmp_path, tmp_path / "img[23].jpg")[0] == ["img2.jpg"]


def test_two_stars_follow_the_rule_and_count_what_they_ask_for(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "x/b.jpg", "x/y/c.jpg", "x/d.png", "x/n.txt", ".h/e.jpg")
    (tmp_path / "x" / "up").symlink_to("..")
    assert find(tmp_path, tmp_path / "**" / "*.jpg") == (
        ["a.jpg", "x/b.jpg", "x/y/c.jpg"],
        {"hidden folders": 1, LOOP: 1},
    )
    assert find(tmp_path, tmp_path / "**")[1][".txt files"] == 1
    assert find(tmp_path, tmp_path / "**" / "y" / "*")[0] == ["x/y/c.jpg"]
    assert find(tmp_path, tmp_path / "*" / "**" / "*.jpg")[0] == ["x/b.jpg", "x/y/c.jpg"]


def test_files_that_link_to_each_other_are_rows(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    assert find(tmp_path)[0] == ["a.png", "b.png"]


@pytest.mark.parametrize("pattern", ["*.gif", "**/*.gif", "[x].jpg"])
def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path, pattern: str) -> None:
    from fedapt_runtime.errors import InputError

    touch(tmp_path, "a.jpg")
    with pytest.raises(InputError, match="found a pattern without images; expected files that end"):
        find(tmp_path, tmp_path / pattern)
