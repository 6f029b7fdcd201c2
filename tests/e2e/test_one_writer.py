"""Two jobs with one output: the first is undisturbed, the second refused before its work."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedapt.cli.app import main
from fedapt_runtime import Classifier
from fedapt_runtime.batch import classify_files
from fedapt_runtime.cli import main as runtime_main
from fedapt_runtime.errors import OutputError
from fedapt_runtime.lock import hold_file, hold_folder

HOLDER = f"process {os.getpid()} on "


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_classify(
    tiny_model: Path, tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sorted(map(str, tiny_images.glob("*/*/*.png")))
    out, alone = tmp_path / "rows.jsonl", tmp_path / "alone.jsonl"
    assert runtime_main(["classify", str(tiny_model), *paths, "--out", str(alone)]) == 0
    capsys.readouterr()
    told = []

    def feed() -> Iterator[str]:
        for i, path in enumerate(paths):
            if i == 1:  # the first job has begun
                for target in (str(out), f"file://{out}"):
                    code = runtime_main(["classify", str(tiny_model), paths[2], "--out", target])
                    told.append((code, capsys.readouterr().err))
            yield path

    classify_files(Classifier.load(tiny_model), feed(), out)
    for code, err in told:
        assert code == 8
        assert f"rows.jsonl: found a file that {HOLDER}" in err
        assert "expected one job per output. To do: wait until that job ends" in err
        assert len(err.splitlines()) == 1
    assert len(told) == 2
    assert out.read_bytes() == alone.read_bytes()
    assert names(tmp_path) == ["alone.jsonl", "rows.jsonl"]


def test_a_thread_is_a_job_too(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> None:
    image = str(next(tiny_images.glob("*/*/*.png")))
    classifier, errors = Classifier.load(tiny_model), []

    def job() -> None:
        try:
            classify_files(classifier, [image], tmp_path / "rows.csv")
        except OutputError as error:
            errors.append(str(error))

    def feed() -> Iterator[str]:
        thread = threading.Thread(target=job)
        thread.start()
        thread.join()
        yield image

    classify_files(classifier, feed(), tmp_path / "rows.csv")
    assert len(errors) == 1
    assert HOLDER in errors[0]


@pytest.mark.parametrize("kind", ["a folder", "a pipe or a device"])
def test_an_output_that_is_no_file_is_refused_before_the_work(
    tiny_model: Path,
    tiny_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    image, out = str(next(tiny_images.glob("*/*/*.png"))), tmp_path / "rows.jsonl"
    os.mkfifo(out) if kind.startswith("a pipe") else out.mkdir()
    assert runtime_main(["classify", str(tiny_model), image, "--out", str(out)]) == 8
    expected = f"rows.jsonl: found {kind}; expected a file that can be replaced"
    assert expected in capsys.readouterr().err
    assert names(tmp_path) == ["rows.jsonl"]
    assert not out.is_file()


def test_train(tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    command = ["train", "--data", str(tiny_images), "--out", str(run)]
    with hold_folder(run):
        assert main(command) == 4
        assert names(run) == [".fedapt-lock"]
    assert f"{run}: found an output that {HOLDER}" in capsys.readouterr().err
    assert main([*command, "--model", "no such model"]) == 4
    assert names(tmp_path) == []  # neither has left anything


def test_compare_and_demo(
    tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with hold_folder(out):
        for command in (["compare", "--data", str(tiny_images)], ["demo"]):
            assert main([*command, "--out", str(out)]) == 4
            assert f"{out}: found an output that {HOLDER}" in capsys.readouterr().err


def test_export_and_swap_head(
    tiny_run: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "model.onnx"
    shutil.copy(tiny_model, out)
    before = out.read_bytes()
    commands = (
        ["export", str(tiny_run / "checkpoint.safetensors"), "--out", str(out)],
        ["swap-head", str(tiny_model), str(tmp_path / "head.safetensors"), "--out", str(out)],
    )
    with hold_file(out):
        for command in commands:
            assert main(command) == 4
            assert f"{out}: found an output that {HOLDER}" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert names(tmp_path) == ["model.onnx"]
