"""Which files are images, and why the others are not."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from PIL import Image, features

from fedapt_runtime import formats
from fedapt_runtime.formats import LeftOut, PathRule, reason_to_skip_file, reason_to_skip_folder
from fedapt_runtime.preprocess import Preprocessing

PLAIN = Preprocessing((4, 4), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture
def without_decoders(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(formats, "_HEIF", ("no_such_package",))
    monkeypatch.setattr(features, "check", lambda name: False)
    formats.optional_formats.cache_clear()
    yield monkeypatch
    formats.optional_formats.cache_clear()


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.JPE", "a.jfif", "b.c.TIFF", "x.PnG", "a.webp", " .gif", "é.bmp", "a.pgm"]
)
def test_images(name: str) -> None:
    assert reason_to_skip_file(name) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".a.jpg", "hidden files"),
        ("._a.jpg", "AppleDouble files of macOS, ._*"),
        ("notes.TXT", ".txt files"),
        ("a.jpg.part", ".part files"),
        ("README", "files with other suffixes"),
        ("a.", "files with other suffixes"),
        ("a.b c", "files with other suffixes"),
        ("a.averylongsuffix", "files with other suffixes"),
        ("a.\udcff", "files with other suffixes"),
    ],
)
def test_reasons(name: str, reason: str) -> None:
    assert reason_to_skip_file(name) == reason


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"])
def test_folders_of_the_system_are_not_entered(name: str) -> None:
    reason = "system folders, such as __MACOSX and @eaDir"
    assert reason_to_skip_folder(name) == reason
    assert reason_to_skip_folder(name.lower() + "x") is None
    assert reason_to_skip_folder(f".{name}") == "hidden folders"


def test_without_its_decoder_a_suffix_is_counted(without_decoders: pytest.MonkeyPatch) -> None:
    assert reason_to_skip_file("a.HEIC") == ".heic files, whose decoder is missing"
    assert reason_to_skip_file("a.avif") == ".avif files, whose decoder is missing"


def test_with_its_decoder_it_is_an_image(without_decoders: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("some_heif")
    called: list[str] = []
    package.register_heif_opener = lambda: called.append("yes")  # type: ignore[attr-defined]
    without_decoders.setitem(sys.modules, "some_heif", package)
    without_decoders.setattr(formats, "_HEIF", ("no_such_package", "some_heif"))
    assert reason_to_skip_file("a.heic") is None
    assert called == ["yes"]
    assert reason_to_skip_file("a.avif") is not None


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / "a.avif")
    pixels = PLAIN.load(tmp_path / "a.avif")
    assert abs(pixels.astype(int) - [200, 100, 50]).max() < 8
    with (tmp_path / "a.avif").open("rb") as stream:
        assert (PLAIN.load(stream) == pixels).all()


def test_a_closed_folder_counts_once_and_paths_may_begin_anyhow() -> None:
    left_out = LeftOut()
    rule = PathRule(left_out)
    paths = ["./p/a.jpg", "/b.png", "p/.git/a.jpg", "p/.git/b/c.jpg", "q/.git/a.jpg", "../c.gif"]
    assert [path for path in paths if rule.takes(path)] == ["./p/a.jpg", "/b.png", "../c.gif"]
    assert left_out == {"hidden folders": 2}


def test_a_flood_of_suffixes_is_counted_together() -> None:
    left_out = LeftOut()
    for i in range(1000):
        left_out.add(f".{i} files")
    left_out.add("hidden files")
    assert left_out.total() == 1001
    assert len(left_out) == 42
    assert left_out["files with other suffixes"] == 960
