"""A model is proved against its checkpoint again, and against any other refused."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from fedapt.cli.app import main
from fedapt.model.checkpoint import load_checkpoint
from tests.support.fusing import save_changed


def verify(model: Path, run: Path, *more: str) -> int:
    return main(["verify", str(model), str(run / "checkpoint.safetensors"), *more])


def test_its_own_checkpoint(
    tiny_model: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(tiny_model, tiny_run, "--images", "0", "--min-agreement", "0", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 12


def test_the_last_line_is_the_verdict(
    tiny_model: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(tiny_model, tiny_run, "--images", "0", "--min-agreement", "0") == 0
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict.startswith(f"passed: {tiny_model} computes the results of its checkpoint (")
    assert verdict.endswith(" % of 12 images keep their class, min 0 %)")


def test_the_files_the_wrong_way_round_are_2(
    tiny_model: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tiny_run / "checkpoint.safetensors"
    assert main(["verify", str(checkpoint), str(tiny_model)]) == 2
    assert capsys.readouterr().err == (
        f"error: MODEL CHECKPOINT: found {checkpoint} {tiny_model}; expected the model first, then"
        f" the checkpoint. To do: fedapt verify {tiny_model} {checkpoint}.\n"
    )


def test_another_checkpoint_is_7(
    tiny_model: Path,
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = load_checkpoint(tiny_run / "checkpoint.safetensors")
    other.learned["meta_prompt"] += 1
    other.save(tmp_path / "checkpoint.safetensors")
    assert verify(tiny_model, tmp_path) == 7
    assert "found a model of checkpoint" in capsys.readouterr().err


def test_a_model_that_was_changed_is_7(
    tiny_model: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(tiny_model)
    for initializer in model.graph.initializer:
        if initializer.name == "text_banks":
            changed = -onnx.numpy_helper.to_array(initializer)
            initializer.CopyFrom(onnx.numpy_helper.from_array(changed, "text_banks"))
    save_changed(model, tmp_path / "changed.onnx")
    assert verify(tmp_path / "changed.onnx", tiny_run, "--min-agreement", "0") == 7
    assert "probabilities differ by" in capsys.readouterr().err
