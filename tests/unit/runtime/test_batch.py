"""A batch job: what it finds, what it writes, and that its output is whole or untouched."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedapt_runtime import Classifier
from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.batch import Summary, classify_files
from fedapt_runtime.errors import InputError, OutputError
from fedapt_runtime.journal import part_path
from fedapt_runtime.options import ClassifyOptions
from fedapt_runtime.output import CSV_COLUMNS
from fedapt_runtime.sources import find_images
from tests.support.manifests import make_manifest


class FakeBackend:
    """Class 0 with 3/4 for an image darker than 100, else class 1 with 3/4; domain likewise."""

    description = "a fake"
    name, compute = "onnxruntime", "fp32"
    in_flight, default_batch, task_size = 2, 32, 0
    manifest = make_manifest(("dark, very", "bright"), ("nacht", "täglich"))

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        bright = (images[:, 0, 0, 0] >= 100).astype(np.float32)
        first = (1 - bright)[:, None] * np.float32(math.log(3))
        second = bright[:, None] * np.float32(math.log(3))
        weights = np.stack([1 - bright, bright], 1)
        return Outputs(np.concatenate([first, second], 1), weights, weights)


@pytest.fixture
def classifier() -> Classifier:
    return Classifier(FakeBackend())


def write(path: Path, colour: int = 10) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    # a file object, as Pillow writes to a name that is not valid text in its own way
    with path.open("wb") as file:
        Image.new("RGB", (3, 3), (colour, colour, colour)).save(file, "PNG")
    return str(path)


def three(folder: Path) -> list[str]:
    """Dark, not an image, bright."""
    bad = folder / "b.png"
    paths = [write(folder / "a.png", 10), str(bad), write(folder / "c.png", 200)]
    bad.write_text("text")
    return paths


def expected_rows(paths: list[str]) -> list[dict[str, object]]:
    return [
        {
            "path": paths[0],
            "label": "dark, very",
            "score": pytest.approx(0.75, abs=1e-6),
            "top_k": [
                ["dark, very", pytest.approx(0.75, abs=1e-6)],
                ["bright", pytest.approx(0.25, abs=1e-6)],
            ],
            "routed_to": "nacht",
            "domain_weights": {"nacht": 1.0, "täglich": 0.0},
            "error": None,
        },
        {
            "path": paths[1],
            "label": None,
            "score": None,
            "top_k": [],
            "routed_to": None,
            "domain_weights": {},
            "error": f"{paths[1]}: found not an image of a known format; expected a complete JPEG,"
            " PNG, WEBP, BMP or similar image. To do: replace or remove the file.",
        },
        {
            "path": paths[2],
            "label": "bright",
            "score": pytest.approx(0.75, abs=1e-6),
            "top_k": [
                ["bright", pytest.approx(0.75, abs=1e-6)],
                ["dark, very", pytest.approx(0.25, abs=1e-6)],
            ],
            "routed_to": "täglich",
            "domain_weights": {"nacht": 0.0, "täglich": 1.0},
            "error": None,
        },
    ]


def read_jsonl(path: Path) -> list[dict[str, object]]:
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def test_jsonl_by_hand(classifier: Classifier, tmp_path: Path) -> None:
    paths, out = three(tmp_path / "in"), tmp_path / "rows.jsonl"
    seen: list[int] = []
    summary = classify_files(
        classifier, paths, out, batch_size=2, progress=lambda s: seen.append(s.images)
    )
    assert read_jsonl(out) == expected_rows(paths)
    assert "täglich" in out.read_text(encoding="utf-8")
    assert (summary.images, summary.errors) == (3, 1)
    assert summary.seconds > 0
    assert summary.images_per_second == pytest.approx(3 / summary.seconds)
    assert seen == [1, 2, 3]


def test_csv_by_hand(classifier: Classifier, tmp_path: Path) -> None:
    paths, out = three(tmp_path / "in"), tmp_path / "rows.CSV"
    classify_files(classifier, paths, out)
    with out.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        rows = list(table)
    assert tuple(table.fieldnames or ()) == CSV_COLUMNS
    assert CSV_COLUMNS == (
        "path",
        "label",
        "score",
        "routed_to",
        "top_k",
        "domain_weights",
        "error",
    )
    for row, expected in zip(rows, expected_rows(paths), strict=True):
        found = dict(row) | {k: json.loads(row[k]) for k in ("top_k", "domain_weights")}
        found["score"] = float(row["score"]) if row["score"] else None
        assert found == {k: "" if v is None and k != "score" else v for k, v in expected.items()}


def test_an_empty_summary_has_no_rate() -> None:
    assert Summary().images_per_second == 0.0


def test_top_k_and_no_images(classifier: Classifier, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    classify_files(classifier, [write(tmp_path / "a.png")], out, ClassifyOptions(top_k=1))
    assert len(read_jsonl(out)[0]["top_k"]) == 1  # type: ignore[arg-type]
    assert classify_files(classifier, [], out).images == 0
    assert out.read_bytes() == b""


def test_folders_are_searched_below_and_sorted(tmp_path: Path) -> None:
    expected = [
        "B.JPG",
        "a.png",
        "z.webp",
        "k/1.tiff",
        "k/k/0.bmp",
        "x.jpg/inside.gif",
    ]
    for name in reversed(expected):
        write(tmp_path / "in" / name)
    for name in ("notes.txt", "k/readme", "k/.png.bak"):
        (tmp_path / "in" / name).write_text("no image")
    alone = write(tmp_path / "alone.anything")
    found = list(find_images([alone, tmp_path / "in", alone]))
    assert found == [alone, *(str(tmp_path / "in" / name) for name in expected), alone]


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"none\.png: found no such file or folder; expected images, or folders, archives",
    ):
        list(find_images([tmp_path / "none.png"]))


@pytest.mark.parametrize("name", [None, "notes.txt"])
def test_a_folder_without_images_is_refused(tmp_path: Path, name: str | None) -> None:
    if name:
        (tmp_path / name).write_text("no image")
    left = r", with .txt files \(1\)" if name else ""
    with pytest.raises(InputError, match=f"found a folder without images{left}; expected files"):
        list(find_images([tmp_path]))


def test_a_folder_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object) -> Iterator[os.DirEntry[str]]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        InputError, match=r"found a folder that cannot be read \(Permission denied\)"
    ):
        list(find_images([tmp_path]))


@pytest.mark.parametrize("name", ["rows.json", "rows", "rows.csv.gz"])
def test_an_unknown_suffix_is_refused_before_any_work(
    classifier: Classifier, tmp_path: Path, name: str
) -> None:
    def paths() -> Iterator[str]:
        raise AssertionError("the work has begun")
        yield ""

    suffix = Path(name).suffix
    with pytest.raises(
        OutputError, match=f"found the suffix '{suffix}'; expected .jsonl or .csv or"
    ):
        classify_files(classifier, paths(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_for_the_output_is_refused(classifier: Classifier, tmp_path: Path) -> None:
    out = tmp_path / "none" / "rows.jsonl"
    with pytest.raises(OutputError, match=r"rows\.jsonl: found no folder .*none; expected"):
        classify_files(classifier, [write(tmp_path / "a.png")], out)
    assert not out.parent.exists()


def test_only_a_job_that_has_begun_can_go_on(classifier: Classifier, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    part_path(out).mkdir()  # in the way of the first row
    with pytest.raises(OutputError, match=r"Is a directory; .* and the free space\.$"):
        classify_files(classifier, [write(tmp_path / "a.png")], out)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_job_that_fails_half_way_leaves_the_older_file(
    classifier: Classifier, tmp_path: Path, suffix: str, failure: type[BaseException]
) -> None:
    image = write(tmp_path / "in" / "a.png")
    out = tmp_path / "out" / f"rows{suffix}"
    out.parent.mkdir()
    out.write_bytes(b"older")
    rows = 0

    def paths() -> Iterator[str]:
        yield from [image] * 20
        raise failure("half-way")

    def count(summary: Summary) -> None:
        nonlocal rows
        rows = summary.images

    with pytest.raises(failure, match="half-way"):
        classify_files(classifier, paths(), out, batch_size=1, progress=count)
    assert rows > 0
    assert out.read_bytes() == b"older"
    # the finished rows are kept for --resume, under a name of their own
    assert sorted(out.parent.iterdir()) == [out, part_path(out)]
    assert len(part_path(out).read_bytes().splitlines()) == 1 + rows


def test_a_job_that_ends_well_replaces_the_older_file(
    classifier: Classifier, tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_bytes(b"older")
    path = write(tmp_path / "a.png")
    before_the_end: list[bytes] = []
    classify_files(
        classifier, [path], out, progress=lambda s: before_the_end.append(out.read_bytes())
    )
    assert before_the_end == [b"older"]
    assert [row["path"] for row in read_jsonl(out)] == [path]


def fail_with_enospc(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_older_file(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    image = write(tmp_path / "in" / "a.png")
    out = tmp_path / "out" / "rows.jsonl"
    out.parent.mkdir()
    out.write_bytes(b"older")
    monkeypatch.setattr(os, call, fail_with_enospc)
    with pytest.raises(OutputError, match=r"rows\.jsonl: found No space left on device; expected"):
        classify_files(classifier, [image], out)
    assert out.read_bytes() == b"older"
    assert sorted(out.parent.iterdir()) == [out, part_path(out)]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_output_has_the_permissions_of_any_new_file(
    classifier: Classifier, tmp_path: Path, mask: int
) -> None:
    out = tmp_path / "rows.jsonl"
    previous = os.umask(mask)
    try:
        classify_files(classifier, [], out)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(out.stat().st_mode) == 0o666 & ~mask


def read_paths_of_csv(path: Path) -> list[object]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]


def read_paths_of_jsonl(path: Path) -> list[object]:
    return [row["path"] for row in read_jsonl(path)]


@pytest.mark.parametrize(
    ("suffix", "read"), [(".jsonl", read_paths_of_jsonl), (".csv", read_paths_of_csv)]
)
def test_odd_names_survive(
    classifier: Classifier, tmp_path: Path, suffix: str, read: Callable[[Path], list[object]]
) -> None:
    names = [b"new\nline.png", b'quo"te, comma.png', "Bär 🐻.png".encode(), b"caf\xe9 \xff.png"]
    paths = [write(tmp_path / os.fsdecode(name)) for name in names]
    out = tmp_path / f"rows{suffix}"
    summary = classify_files(classifier, paths, out)
    assert (summary.images, summary.errors) == (4, 0)
    assert read(out) == paths
    assert [os.fsencode(Path(str(path)).name) for path in read(out)] == names
    assert b"caf\xe9 \xff.png" in out.read_bytes()


def test_rows_go_to_stdout_without_an_output(
    classifier: Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = three(tmp_path)
    classify_files(classifier, paths, None)
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == expected_rows(paths)
