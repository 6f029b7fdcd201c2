"""The command line: exit codes, what goes to stdout, and what is told on stderr."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from PIL import Image

import fedapt_runtime
from fedapt_runtime.backends import ort
from fedapt_runtime.batch import Summary
from fedapt_runtime.cli import classify, main
from fedapt_runtime.options import ClassifyOptions

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of two images and one that is none."""
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (80, 70), (200, 0, 0)).save(folder / "a.png")
    (folder / "b.png").write_text("text")
    Image.new("RGB", (80, 70), (0, 0, 200)).save(folder / "c.png")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_rows_on_stdout_and_messages_on_stderr(
    tiny_model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "classify", tiny_model, images, "--device", "cpu", "--top-k", 2)
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["path"] for row in rows] == [str(images / f"{n}.png") for n in "abc"]
    assert [len(row["top_k"]) for row in rows] == [2, 0, 2]
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert "\r" not in err  # progress is for terminals
    first, last, kind = err.splitlines()
    assert kind == "  1 not an image of a known format"
    assert re.fullmatch(rf"{re.escape(str(tiny_model))}: ONNX Runtime \S+ on cpu", first)
    assert re.fullmatch(r"3 images in \d+\.\d s \(\d+ a second\), 1 with errors", last)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_rows_in_a_file_leave_stdout_empty(
    tiny_model: Path, images: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    target = images.parent / f"rows.{suffix}"
    code, out, err = run(capsys, "classify", tiny_model, images, "--out", target)
    assert (code, out) == (0, "")
    assert "3 images in" in err
    lines = target.read_text(encoding="utf-8").splitlines()
    assert len(lines) == {"jsonl": 3, "csv": 4}[suffix]


def test_json_prints_the_summary(
    tiny_model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = images.parent / "rows.jsonl"
    code, out, _ = run(capsys, "classify", tiny_model, images, "--out", target, "--json")
    assert code == 0
    assert len(out.splitlines()) == 1
    summary = json.loads(out)
    assert set(summary) == {
        "ran_on",
        "images",
        "errors",
        "kinds",
        "resumed",
        "finished",
        "seconds",
        "images_per_second",
        "left_out",
    }
    assert summary["kinds"] == {"not an image of a known format": 1}
    assert (summary["images"], summary["errors"]) == (3, 1)
    assert summary["images_per_second"] == pytest.approx(3 / summary["seconds"])


def test_options_reach_the_job(
    tiny_model: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}

    def classify_files(*arguments: object, **options: object) -> Summary:
        _, images, out, answer = arguments
        seen.update(options, paths=list(images), out=out, answer=answer)  # type: ignore[call-overload]
        return Summary()

    monkeypatch.setattr(classify, "classify_files", classify_files)
    arguments = ["classify", str(tiny_model), str(images / "a.png"), "--batch-size", "7"]
    arguments += ["--top-k", "2", "--workers", "3", "--preprocess", "fast", "--resume"]
    assert main([*arguments, "--out", "x.csv"]) == 0
    assert {k: v for k, v in seen.items() if k != "progress"} == {
        "batch_size": 7,
        "answer": ClassifyOptions(top_k=2, fast=True),
        "workers": 3,
        "decode_processes": 0,
        "resizer": None,
        "resume": True,
        "runner": None,
        "paths": [str(images / "a.png")],
        "out": "x.csv",
    }


def test_describe_prints_the_manifest(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "describe", tiny_model)
    assert (code, err) == (0, "")
    manifest = json.loads(out)
    assert manifest["classes"] == ["blue disc", "red square", "stripes"]
    assert manifest["preprocessing"]["size"] == [64, 64]
    assert manifest["schema"] == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"{fedapt_runtime.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["train"], "invalid choice: 'train'"),
        (["classify", "model.onnx"], "the following arguments are required: PATH"),
        (["classify", "m", "a", "--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (
            ["classify", "m", "a", "--batch-size", "0"],
            "argument --batch-size: found 0, expected a whole number of at least 1",
        ),
        (
            ["classify", "m", "a", "--top-k", "two"],
            "argument --top-k: found two, expected a whole number of at least 1",
        ),
        (
            ["classify", "m", "a", "--workers=-1"],
            "argument --workers: found -1, expected a whole number of at least 1",
        ),
        (
            ["classify", "m", "a", "--decode-processes=-1"],
            "argument --decode-processes: found -1, expected a whole number of at least 0",
        ),
        (
            ["classify", "m", "a", "--decode-processes", "2", "--ray"],
            "--decode-processes excludes --workers and --ray",
        ),
        (
            ["classify", "m", "a", "--json"],
            "--json prints the summary on stdout: it needs --out for the rows",
        ),
        (
            ["classify", "m", "a", "--resume"],
            "--resume continues a file: it needs --out",
        ),
        (
            ["classify", "m", "a", "--gpus-per-worker", "1"],
            "--gpus-per-worker needs --ray",
        ),
    ],
)
def test_wrong_usage_is_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    captured = capsys.readouterr()
    assert (exit_.value.code, captured.out) == (2, "")
    assert text in captured.err


def missing_model(folder: Path, model: Path) -> Path:
    return folder / "none.onnx"


def folder_as_model(folder: Path, model: Path) -> Path:
    return folder


def text_as_model(folder: Path, model: Path) -> Path:
    path = folder / "text.onnx"
    path.write_text("not a model")
    return path


def model_without_manifest(folder: Path, model: Path) -> Path:
    loaded = onnx.load(str(model))
    del loaded.metadata_props[:]
    onnx.save(loaded, str(folder / "bare.onnx"))
    return folder / "bare.onnx"


@pytest.mark.parametrize("command", ["classify", "describe"])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (missing_model, r"none\.onnx: found no such file; expected a model written by"),
        (folder_as_model, r"found not a file; expected a model written by `fedapt export`"),
        (text_as_model, r"text\.onnx: found a file that is not an ONNX model \(.+\); expected"),
        (model_without_manifest, r"bare\.onnx: found an ONNX file without a fedapt manifest;"),
    ],
)
def test_a_model_that_is_none_is_8(
    tiny_model: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    change: Callable[[Path, Path], Path],
    text: str,
) -> None:
    model = change(images.parent, tiny_model)
    paths = [images] if command == "classify" else []
    code, out, err = run(capsys, command, model, *paths)
    assert (code, out) == (8, "")
    assert re.match(rf"error: .*{text}.* To do: .+\.\n$", err)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        (["none.png"], "none.png: found no such file or folder"),
        (["."], "found a folder without images"),
        (["empty.txt"], "empty.txt: found a list without images; expected paths of images"),
    ],
)
def test_nothing_to_classify_is_8(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    paths: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if paths == ["empty.txt"]:
        Path("empty.txt").write_text("\n\n")
    code, out, err = run(capsys, "classify", tiny_model, *paths)
    assert (code, out) == (8, "")
    assert text in err


def test_an_output_of_unknown_format_is_8_before_the_model_is_read(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "classify", "none.onnx", images, "--out", "rows.txt")
    assert code == 8
    assert err.startswith(
        "error: rows.txt: found the suffix '.txt'; expected .jsonl or .csv or .parquet."
    )


def test_an_output_in_a_folder_that_is_not_there_is_8_before_the_model_is_read(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = images.parent / "none" / "rows.csv"
    code, _, err = run(capsys, "classify", "none.onnx", images, "--out", out)
    assert code == 8
    assert err == (
        f"error: {out}: found no folder {out.parent}; expected a folder that can be written."
        " To do: create the folder, or choose another folder.\n"
    )


def test_a_checkpoint_in_place_of_a_head_is_8(
    tiny_run: Path, tiny_model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tiny_run / "checkpoint.safetensors"
    code, out, err = run(capsys, "classify", tiny_model, images, "--head", checkpoint)
    assert (code, out) == (8, "")
    assert err == (
        f"error: {checkpoint}: found a checkpoint; expected a head written by"
        " `fedapt export --head-only`. To do: write its head: fedapt export"
        f" {checkpoint} --head-only --out head.safetensors.\n"
    )


def test_cuda_without_cuda_is_8(
    tiny_model: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = ort.import_onnxruntime()
    monkeypatch.setattr(module, "get_available_providers", lambda: ["CPUExecutionProvider"])
    code, out, err = run(capsys, "classify", tiny_model, images, "--device", "cuda")
    assert (code, out) == (8, "")
    assert "error: device: found 'cuda'; expected auto, cpu with the installed ONNX Runtime" in err


def test_both_variants_of_onnxruntime_are_9(
    tiny_model: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ort, "_find_folder", lambda name: "site-packages")
    code, out, err = run(capsys, "classify", tiny_model, images)
    assert (code, out) == (9, "")
    assert "error: onnxruntime: found both onnxruntime and onnxruntime-gpu" in err
    assert "To do: pip uninstall -y onnxruntime onnxruntime-gpu, then pip install" in err


def test_no_onnxruntime_is_9(
    tiny_model: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ort, "_find_folder", lambda name: None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    code, out, err = run(capsys, "classify", tiny_model, images)
    assert (code, out) == (9, "")
    assert "error: onnxruntime: found no usable ONNX Runtime (" in err
    assert "To do: pip install 'fedapt-runtime[cpu]' (or [gpu] where there is" in err


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu"])
def test_either_variant_alone_is_enough(
    tiny_model: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    folder = {name: "site-packages"}
    monkeypatch.setattr(ort, "_find_folder", folder.get)
    assert run(capsys, "classify", tiny_model, images, "--device", "cpu")[0] == 0


def test_ctrl_c_is_130(
    tiny_model: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(classify, "classify_files", interrupt)
    code, out, err = run(capsys, "classify", tiny_model, images)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted: no output file was written"


def test_progress_is_shown_on_a_terminal(
    tiny_model: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, _, err = run(capsys, "classify", tiny_model, images)
    assert code == 0
    assert re.search(r"\r1 of 3 images, \d+ a second, \d+ s left ", err)
    assert re.search(r"\r3 images in \d+\.\d s \(", err)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fedapt_runtime", *map(str, arguments)]


def test_names_that_are_no_text_reach_stdout_as_their_bytes(tiny_model: Path, images: Path) -> None:
    path = os.fsencode(images) + b"/caf\xe9.png"
    os.rename(images / "a.png", path)
    # the encoding that most terminals give Python, under which such a name cannot be printed
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command("classify", tiny_model), path],
        capture_output=True,
        check=False,
        env=environment,
        timeout=60,
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert b"caf\xe9.png" in done.stdout


def test_a_reader_that_leaves_is_no_error(tiny_model: Path, images: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            command("classify", tiny_model, images),
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "BrokenPipeError" not in done.stderr


@needs_full
@pytest.mark.parametrize("name", ["classify", "describe"])
def test_a_full_stdout_is_8(tiny_model: Path, images: Path, name: str) -> None:
    paths = [images] if name == "classify" else []
    with FULL.open("w") as full:
        done = subprocess.run(
            command(name, tiny_model, *paths),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            text=True,
            timeout=60,
        )
    assert done.returncode == 8
    assert done.stderr.splitlines()[-1] == (
        "error: stdout: found No space left on device; expected a stream that can be written."
        " To do: check the free space and the destination of the output."
    )
    assert "Exception ignored" not in done.stderr
