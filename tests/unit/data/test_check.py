"""`fedapt data check`: everything that is wrong with the images, and nothing that is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedapt.core.errors import DataError
from fedapt.core.report import Reporter
from fedapt.data.check import FEW_IMAGES, check_data
from tests.support.tiny import write_tiny_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tiny_images(tmp_path / "images", per_class=FEW_IMAGES)


def test_a_good_folder_has_nothing_to_tell(root: Path) -> None:
    report = check_data(root, Reporter())
    of_classes = {"blue_disc": 5, "red_square": 5, "stripes": 5}
    assert report.counts == {"photo": of_classes, "sketch": of_classes}
    assert report.is_sound
    assert report.unreadable == report.missing == report.few == report.stray == ()


def test_an_image_that_cannot_be_read_is_named_with_the_reason(root: Path) -> None:
    (root / "photo/stripes/001.png").write_bytes(b"no image")
    (root / "sketch/stripes/004.png").write_bytes(b"")
    report = check_data(root, Reporter())
    assert report.unreadable == (
        "photo/stripes/001.png: not an image of a known format",
        "sketch/stripes/004.png: an empty file",
    )
    assert not report.is_sound
    assert report.counts["photo"]["stripes"] == 5  # it stands there, broken as it is


def test_a_truncated_image_is_named(root: Path) -> None:
    path = root / "photo/stripes/001.png"
    path.write_bytes(path.read_bytes()[:-200])
    (problem,) = check_data(root, Reporter()).unreadable
    assert problem.startswith("photo/stripes/001.png: an unreadable image (")


def test_a_class_without_images_is_missing(root: Path) -> None:
    for path in (root / "sketch/stripes").iterdir():
        path.unlink()
    report = check_data(root, Reporter())
    assert report.missing == ("sketch/stripes",)
    assert report.few == ()
    assert not report.is_sound


def test_few_images_are_told_and_no_fault(root: Path) -> None:
    (root / "sketch/stripes/000.png").unlink()
    report = check_data(root, Reporter())
    assert report.few == ("sketch/stripes",)
    assert report.missing == ()
    assert report.is_sound


def test_files_in_places_where_no_image_is_looked_for_are_stray(root: Path) -> None:
    (root / "photo/deep.png").touch()
    (root / "photo/stripes/deeper").mkdir()
    (root / "photo/stripes/deeper/1.png").touch()
    (root / "sketch/stripes/notes.txt").touch()
    (root / "sketch/stripes/.DS_Store").touch()
    (root / "photo_train.txt").touch()  # in the root lists and licences may stand
    report = check_data(root, Reporter())
    assert report.stray == (
        "photo/deep.png",
        "photo/stripes/deeper/1.png",
        "sketch/stripes/notes.txt",
    )
    assert report.is_sound


def test_the_report_is_json(root: Path) -> None:
    fields = json.loads(json.dumps(check_data(root, Reporter()).to_dict()))
    assert sorted(fields) == [
        "counts",
        "few",
        "is_sound",
        "left_out",
        "missing",
        "stray",
        "unreadable",
    ]
    assert fields["is_sound"] is True
    assert fields["counts"]["photo"]["stripes"] == 5


def test_no_domains_are_an_error_and_no_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no folders"):
        check_data(tmp_path, Reporter())
