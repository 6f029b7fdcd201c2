"""Every kind of file says what it is, and any other is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fedapt.cli.app import main
from fedapt.core.config import read_config
from fedapt.core.errors import CheckpointError, FileError
from fedapt.model.checkpoint import Checkpoint, load_checkpoint
from fedapt_export.describe import describe
from fedapt_runtime.errors import ModelFileError
from tests.support.fusing import export_run

CLASSES = ("blue disc", "red square", "stripes")


def test_a_checkpoint(tiny_run: Path) -> None:
    path = tiny_run / "checkpoint.safetensors"
    facts = describe(path)
    assert facts["kind"] == "checkpoint"
    assert facts["bytes"] == path.stat().st_size
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["tensors"] == {
        "adaptive_network": [2, 32],
        "keys": [2, 4, 32],
        "meta_prompt": [3, 4, 32],
    }
    assert (facts["classes"], facts["rounds"]) == (CLASSES, 3)
    assert (facts["method"], facts["schema"]) == ("fedapt", 2)
    assert facts["domains"] == facts["keys"] == ("photo", "sketch")
    assert facts["clients"] == (0, 1)
    assert facts["config"]["prompt"]["context_length"] == 4
    assert facts["config"]["data"]["root"] == ""


def test_a_checkpoint_of_another_method(tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    config = read_config(None, ["train.method=promptfl"])
    info = load_checkpoint(tiny_run / "checkpoint.safetensors").info
    info = dataclasses.replace(info, config=config)
    Checkpoint(info, {"context": torch.zeros(3, 4, 32)}).save(path)
    facts = describe(path)
    assert (facts["kind"], facts["method"]) == ("checkpoint", "promptfl")
    assert facts["tensors"] == {"context": [3, 4, 32]}


def test_a_model(tiny_model: Path) -> None:
    facts = describe(tiny_model)
    assert facts["kind"] == "model"
    assert facts["inputs"] == {"images": "uint8 [batch, 64, 64, 3]"}
    assert facts["outputs"]["logits"] == "float [batch, classes]"
    assert "text_banks" in facts["swappable"]
    # the tiny ViT: every weight is float32, and the sizes are most of the file
    assert set(facts["weight_bytes"]) == {"float", "int64"}
    assert 0.5 < facts["weight_bytes"]["float"] / facts["bytes"] < 1
    assert facts["nodes"]["LayerNormalization"] == 6
    assert facts["operators"] == "onnx"
    assert facts["parity"]["images"] == 12


def test_a_head(tiny_run: Path, tmp_path: Path) -> None:
    head = tmp_path / "head.safetensors"
    export_run(tiny_run, head, head_only=True)
    facts = describe(head)
    assert facts["kind"] == "head"
    assert facts["tensors"]["text_banks"] == [32, 6]
    assert facts["domains"] == ("photo", "sketch")


@pytest.mark.parametrize("name", ["checkpoint", "model"])
def test_the_command_prints_json_and_a_table(
    name: str, tiny_run: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_model if name == "model" else tiny_run / "checkpoint.safetensors"
    assert main(["describe", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == name
    assert main(["describe", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(name)
    assert '["photo", "sketch"]' in shown


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileError, match="no such file; expected a fedapt checkpoint, head"):
        describe(tmp_path / "absent")
    with pytest.raises(FileError, match="found not a file"):
        describe(tmp_path)
    noise = tmp_path / "noise"
    noise.write_bytes(b"\xff" * 100)
    with pytest.raises(FileError, match="neither safetensors nor ONNX"):
        describe(noise)
    empty = tmp_path / "empty"  # which is valid protobuf
    empty.write_bytes(b"")
    with pytest.raises(ModelFileError, match="an empty file"):
        describe(empty)
    other = tmp_path / "other.safetensors"
    save_file({"weight": np.zeros(2, np.float32)}, str(other))
    with pytest.raises(CheckpointError, match="without fedapt's metadata"):
        describe(other)
    assert main(["describe", str(tmp_path / "absent")]) == 4
    assert "error: " in capsys.readouterr().err
