"""Jobs that were stopped go on behind their last whole row, and give what one job would have."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedapt_runtime import Classifier
from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.batch import Summary, classify_files, error_kind
from fedapt_runtime.cli import main
from fedapt_runtime.errors import ImageError, InputError, OutputError
from fedapt_runtime.journal import part_path, read_ran_on
from fedapt_runtime.options import ClassifyOptions
from fedapt_runtime.sources import find_images
from tests.unit.runtime.test_batch import FakeBackend, write


@pytest.fixture
def classifier() -> Classifier:
    return Classifier(FakeBackend())


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    found = [write(tmp_path / "in" / f"{i:02}.png", 20 * i) for i in range(12)]
    Path(found[4]).write_text("text")
    return found


class Stop(Exception):
    """Stands for whatever ends a process."""


def run_until(
    classifier: Classifier, paths: list[str], out: Path, n_rows: int, **options: object
) -> None:
    def stop(summary: Summary) -> None:
        if summary.images == n_rows:
            raise Stop

    with pytest.raises(Stop):
        classify_files(classifier, paths, out, batch_size=1, progress=stop, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("n_rows", [1, 5, 11])
def test_a_resumed_job_writes_what_one_job_writes(
    classifier: Classifier, paths: list[str], tmp_path: Path, suffix: str, n_rows: int
) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"rows{suffix}"
    once = classify_files(classifier, paths, whole)
    run_until(classifier, paths, out, n_rows)
    assert not out.exists()
    assert part_path(out).is_file()
    seen: list[str] = []

    def watch() -> Iterator[str]:
        for path in paths:
            seen.append(path)
            yield path

    summary = classify_files(classifier, watch(), out, resume=True)
    assert out.read_bytes() == whole.read_bytes()
    assert not part_path(out).exists()
    assert (summary.images, summary.errors, summary.kinds) == (12, 1, once.kinds)
    assert summary.resumed == n_rows
    assert seen == paths


class BatchBackend(FakeBackend):
    """Its probabilities tell the place in the batch and the batch's size."""

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        outputs = super().run(images)
        place = np.arange(1, len(images) + 1, dtype=np.float32)[:, None]
        outputs.logits[:, :1] = place / 100 + len(images)
        return outputs


@pytest.mark.parametrize("n_rows", range(1, 12))
@pytest.mark.parametrize("task_size", [0, 4])
def test_a_resumed_job_has_the_batches_of_one_job(
    paths: list[str], tmp_path: Path, n_rows: int, task_size: int
) -> None:
    classifier = Classifier(BatchBackend())
    classifier.backend.task_size = task_size
    whole, out = tmp_path / "whole.jsonl", tmp_path / "rows.jsonl"
    classify_files(classifier, paths, whole, batch_size=3)

    def stop(summary: Summary) -> None:
        if summary.images == n_rows:
            raise Stop

    with pytest.raises(Stop):
        classify_files(classifier, paths, out, batch_size=3, progress=stop)
    summary = classify_files(classifier, paths, out, resume=True)  # with the size that it had
    assert summary.resumed == n_rows - n_rows % 3
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_nothing_is_done_where_the_job_has_ended(
    classifier: Classifier, paths: list[str], tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"rows{suffix}"
    odd = write(tmp_path / "in" / "caf\udce9\n.png")
    classify_files(classifier, [*paths, odd], out)
    before = out.stat()
    summary = classify_files(Classifier(FakeBackend()), iter([*paths, odd]), out, resume=True)
    assert (summary.images, summary.resumed, summary.finished) == (13, 13, True)
    assert out.stat() == before
    # other images make another job, which begins
    for other in (paths, [*paths, odd, odd], paths[::-1]):
        summary = classify_files(classifier, iter(other), out, resume=True)
        assert (summary.images, summary.resumed, summary.finished) == (len(other), 0, False)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("text", ["", "older", "{}", "[]\n", "path\n", "[" * 99_999])
def test_an_output_of_something_else_is_replaced(
    classifier: Classifier, paths: list[str], tmp_path: Path, suffix: str, text: str
) -> None:
    out = tmp_path / f"rows{suffix}"
    out.write_text(text)
    assert classify_files(classifier, paths, out, resume=True).finished is False
    assert classify_files(classifier, paths, out, resume=True).finished is True


def test_half_a_row_is_written_again(
    classifier: Classifier, paths: list[str], tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "rows.jsonl"
    classify_files(classifier, paths, whole)
    run_until(classifier, paths, out, 6)
    part = part_path(out)
    part.write_bytes(part.read_bytes()[:-25])  # as a killed process leaves it
    assert classify_files(classifier, paths, out, resume=True).resumed == 5
    assert out.read_bytes() == whole.read_bytes()


def test_without_resume_a_job_begins_anew(
    classifier: Classifier, paths: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    run_until(classifier, paths, out, 6)
    summary = classify_files(classifier, paths[:2], out)
    assert (summary.images, summary.resumed) == (2, 0)
    assert len(out.read_text().splitlines()) == 2
    assert not part_path(out).exists()


def test_resume_without_rows_begins(
    classifier: Classifier, paths: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    assert classify_files(classifier, paths, out, resume=True).resumed == 0
    assert len(out.read_text().splitlines()) == 12


def test_other_images_are_refused(classifier: Classifier, paths: list[str], tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    run_until(classifier, paths, out, 3)
    kept = part_path(out).read_bytes()
    for other in (paths[1:], paths[:2]):
        with pytest.raises(
            InputError,
            match=r"rows\.jsonl\.part, row \d: found '.*', where the images now have .*; expected"
            r" the same images in the same order",
        ):
            classify_files(classifier, other, out, resume=True)
        assert part_path(out).read_bytes() == kept


def test_another_job_is_refused(classifier: Classifier, paths: list[str], tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    run_until(classifier, paths, out, 3)
    with pytest.raises(InputError, match=r"found rows of another job; expected the same model"):
        classify_files(classifier, paths, out, ClassifyOptions(top_k=1), resume=True)
    with pytest.raises(InputError, match=r"found rows of another job"):
        classify_files(classifier, paths, out, ClassifyOptions(fast=True), resume=True)
    other = FakeBackend()
    other.manifest = type(other.manifest)(**{**vars(other.manifest), "rounds": 2})
    with pytest.raises(InputError, match=r"found rows of another job"):
        classify_files(Classifier(other), paths, out, resume=True)
    part_path(out).write_text("no rows at all")
    with pytest.raises(InputError, match=r"found rows of another job"):
        classify_files(classifier, paths, out, resume=True)


def test_a_disk_that_fills_keeps_the_rows(
    classifier: Classifier, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rows.csv"

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedapt_runtime.output.csv.DictWriter.writerow", fail)
        with pytest.raises(OutputError, match=r"No space left on device.*`resume` goes on"):
            classify_files(classifier, paths, out, batch_size=1)
    assert not out.exists()
    summary = classify_files(classifier, paths, out, resume=True)
    assert (summary.images, summary.resumed) == (12, 12)
    with out.open(newline="") as stream:
        assert [row["path"] for row in csv.DictReader(stream)] == paths


def test_images_in_archives_are_resumed_by_their_names(
    classifier: Classifier, paths: list[str], tmp_path: Path
) -> None:
    archive = tmp_path / "in.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        for path in paths:
            stream.write(path, Path(path).name)
    out = tmp_path / "rows.jsonl"
    run_until(classifier, list(find_images([archive])), out, 7)  # type: ignore[arg-type]
    summary = classify_files(classifier, find_images([archive]), out, resume=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["path"] for row in rows] == [f"{archive}::{Path(p).name}" for p in paths]
    assert (summary.resumed, summary.errors) == (7, 1)
    labels = [row["label"] for row in rows]
    assert labels == ["dark, very"] * 4 + [None] + ["bright"] * 7  # 20 i >= 100 from the sixth on


def test_parquet_by_hand(classifier: Classifier, paths: list[str], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    out = tmp_path / "rows.parquet"
    odd = write(tmp_path / "in" / "caf\udce9.png")
    classify_files(classifier, [paths[0], paths[4], odd], out, ClassifyOptions(top_k=1))
    first, bad, last = parquet.read_table(out).to_pylist()
    assert first == {
        "path": paths[0],
        "label": "dark, very",
        "score": pytest.approx(0.75),
        "routed_to": "nacht",
        "top_k": [{"label": "dark, very", "score": pytest.approx(0.75)}],
        "domain_weights": [("nacht", 1.0), ("täglich", 0.0)],
        "error": None,
    }
    assert bad["label"] is None
    assert "not an image of a known format" in bad["error"]
    assert last["path"].endswith("caf\\xe9.png")


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ("no such file", "no such file"),
        ("a damaged image (SyntaxError: broken)", "a damaged image"),
        ("a file of 12,000 bytes, over the limit of 10", "an image over the limits"),
        ("not an image of a known format", "not an image of a known format"),
    ],
)
def test_errors_are_counted_by_kind(found: str, kind: str) -> None:
    for path in ("a.png", "a: found b.png", "a; expected (b).png", "line\nend.png"):
        error = ImageError(where=path, found=found, expected="x", next_step="y")
        assert error_kind(path, str(error)) == kind


def test_a_job_that_goes_on_runs_on_what_began_it(
    tiny_model: Path, tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    folder, out = tiny_images / "photo" / "stripes", tmp_path / "rows.jsonl"
    paths = [str(path) for path in sorted(folder.iterdir())]
    began = Classifier.load(tiny_model, "openvino")
    run_until(began, paths, out, 3)
    assert read_ran_on(out) == {"backend": "openvino", "compute": "fp32"}
    command = ["classify", str(tiny_model), str(folder), "--out", str(out), "--json"]
    assert main([*command, "--resume"]) == 0
    told = capsys.readouterr()
    assert "OpenVINO" in told.err  # the tests' environment asks for ONNX Runtime
    ran_on = {"backend": "openvino", "compute": "fp32", "batch_size": 1}
    assert json.loads(told.out)["ran_on"] == ran_on
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["ran_on"]["backend"] == "onnxruntime"


@pytest.mark.parametrize("line", [None, b"", b"{}", b"[]", b'{"ran_on": []}', b"[" * 99_999])
def test_a_journal_that_does_not_say_what_it_ran_on(tmp_path: Path, line: bytes | None) -> None:
    if line is not None:
        part_path(tmp_path / "rows.csv").write_bytes(line)
    assert read_ran_on(tmp_path / "rows.csv") == {}


def test_what_a_model_returned_is_a_kind_of_its_own() -> None:
    kind = "the model returned NaN or infinity"
    assert error_kind("a (1).png", f"a (1).png: {kind}") == kind
