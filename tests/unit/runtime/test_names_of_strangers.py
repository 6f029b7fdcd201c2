"""Names of files, folders, classes and domains never make a terminal do anything."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from PIL import Image

from fedapt_runtime import engine_check
from fedapt_runtime.cli import main
from fedapt_runtime.doctor import Finding

EVIL = "\x1b]0;mine\x07\x9b31m\x7f\u202e"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with a name, classes and domains of a stranger."""
    loaded = onnx.load(tiny_model)
    (entry,) = (entry for entry in loaded.metadata_props if entry.key == "fedapt")
    manifest = json.loads(entry.value)
    del manifest["content_sha256"]  # whoever changes a file on purpose can write a new one
    for names in ("classes", "domains"):
        manifest[names] = [f"{name}{EVIL}" for name in manifest[names]]
    entry.value = json.dumps(manifest)
    onnx.save(loaded, tmp_path / f"model{EVIL}.onnx")
    return tmp_path / f"model{EVIL}.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files that are images by their names, one of which is one, and one that is none."""
    found = tmp_path / f"folder{EVIL}"
    found.mkdir()
    Image.new("RGB", (80, 70), (200, 0, 0)).save(found / f"a{EVIL}.png")
    (found / f"b{EVIL}.png").write_text("text")
    (found / f"c.txt{EVIL}").write_text("text")
    return found


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, on which nothing but text may be."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert_harmless(captured.out)
    assert_harmless(captured.err)
    return code, captured.out, captured.err


def assert_harmless(text: str) -> None:
    assert not [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cs")]
    assert "\u202e" not in text


def test_classify_on_stdout(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "classify", model, folder, "--device", "cpu")
    assert code == 0
    good, bad = map(json.loads, out.splitlines())
    assert (good["path"], bad["path"]) == tuple(str(folder / f"{n}{EVIL}.png") for n in "ab")
    assert good["label"].endswith(EVIL)
    assert good["routed_to"].endswith(EVIL)
    assert bad["error"]
    assert r"\x1b]0;mine\x07\x9b31m\x7f\u202e.onnx: ONNX Runtime" in err
    assert "2 images in " in err


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_classify_into_a_file(
    suffix: str, model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"rows{EVIL}.{suffix}"
    code, summary, err = run(capsys, "classify", model, folder, "--out", out, "--json")
    assert code == 0
    assert json.loads(summary)["images"] == 2
    assert "left out: files with other suffixes (1)" in err
    code, _, err = run(capsys, "classify", model, folder, "--out", out, "--resume")
    assert (code, "finished before: 2 rows" in err) == (0, True)


def test_errors(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for arguments in (
        ("classify", tmp_path / f"no{EVIL}.onnx", tmp_path),
        ("classify", model, tmp_path / f"none{EVIL}"),
        ("classify", model, tmp_path, "--out", tmp_path / f"a{EVIL}" / "rows.jsonl"),
        ("classify", model, tmp_path, "--head", tmp_path / f"head{EVIL}.safetensors"),
        ("describe", tmp_path / f"no{EVIL}.onnx"),
        ("bench", tmp_path / f"no{EVIL}.onnx"),
        ("check", tmp_path / f"no{EVIL}.engine", "--against", model),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code in (8, 9), out) == (True, ""), arguments
        assert r"\x1b]0;mine\x07\x9b31m\x7f\u202e" in err, arguments


def test_arguments_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    """A shell's pattern may make an option of a file's name."""
    with pytest.raises(SystemExit) as caught:
        main(["describe", "model.onnx", f"--{EVIL}"])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert_harmless(err)
    assert r"unrecognized arguments: --\x1b]0;mine" in err
    assert err.startswith("usage: ")


def test_describe(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "describe", model)
    assert code == 0
    assert all(name.endswith(EVIL) for name in json.loads(out)["classes"])


def test_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        "fedapt_runtime.cli.doctor.examine", lambda: [Finding("pillow", True, f"12{EVIL}", "")]
    )
    code, out, _ = run(capsys, "doctor")
    assert (code, out) == (0, "pillow           yes  12\\x1b]0;mine\\x07\\x9b31m\\x7f\\u202e\n")
    code, out, _ = run(capsys, "doctor", "--json")
    assert json.loads(out)[0]["detail"] == f"12{EVIL}"


def test_check(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = SimpleNamespace(
        batch_sizes=(1, 2),
        images=f"images of {EVIL}",
        probability_difference=0.0,
        repeated_difference=0.0,
        permuted_difference=0.0,
        to_dict=lambda: {"images": EVIL},
    )
    monkeypatch.setattr(engine_check, "check_engine", lambda *arguments: report)
    code, out, _ = run(capsys, "check", f"{EVIL}.engine", "--against", model)
    assert (code, out.count(r"\x1b]0;mine")) == (0, 3)
    code, out, _ = run(capsys, "check", f"{EVIL}.engine", "--against", model, "--json")
    assert json.loads(out) == {"images": EVIL}
