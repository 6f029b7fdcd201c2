"""Engines are really built from graphs in half precision; int8 is refused before the work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fedapt.cli.app import main
from fedapt.core.errors import ExportError
from fedapt.core.files import hash_file
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.onnx.tower import read_tower
from fedapt_export import engine as engine_module
from fedapt_export.describe import describe
from fedapt_export.engine import EngineSettings, build_engine
from fedapt_export.fuse import build_zero_shot_manifest, fuse, read_opset
from fedapt_export.half import to_half
from fedapt_export.head import zero_shot_head
from fedapt_export.model_file import write_model
from fedapt_runtime.backends.engine_plan import MODULES

pytestmark = pytest.mark.skipif(
    engine_module.find_spec(MODULES["rtx"]) is None, reason="needs TensorRT-RTX (the extra `rtx`)"
)
CLASSES = ("mug", "laptop computer")
SETTINGS = EngineSettings("rtx", ("sm89",), min_batch=1, opt_batch=2, max_batch=4)
both = pytest.mark.parametrize("precision", ["fp16", "bf16"])


def write_zero_shot(backbone: Backbone, precision: str, out: Path) -> Path:
    tower = read_tower(backbone)
    if precision != "fp32":
        tower = to_half(tower, precision)
    graph = fuse(tower, zero_shot_head(backbone, CLASSES), backbone.label)
    manifest = build_zero_shot_manifest(backbone, CLASSES)
    manifest = dataclasses.replace(manifest, precision=precision, opset=read_opset(graph))
    write_model(graph, manifest, out)
    return out


def check_engine(model: Path, precision: str) -> None:
    out = model.with_suffix(".engine")
    build_engine(model, out, SETTINGS)
    description = json.loads(out.with_name(out.name + ".json").read_text())
    assert description["flavour"] == "rtx"
    assert description["manifest"]["precision"] == precision
    assert description["onnx_sha256"] == hash_file(model)
    assert description["engine_sha256"] == hash_file(out)
    # an engine holds its weights: it is about as large as its model
    assert out.stat().st_size > 0.4 * model.stat().st_size
    facts = describe(out)
    assert (facts["kind"], facts["precision"]) == ("engine", precision)


@both
def test_the_tiny_vit(precision: str, tiny_backbone: Backbone, tmp_path: Path) -> None:
    check_engine(write_zero_shot(tiny_backbone, precision, tmp_path / "m.onnx"), precision)


@both
def test_lite(precision: str, tmp_path: Path) -> None:
    lite = load_backbone("lite")
    check_engine(write_zero_shot(lite, precision, tmp_path / "lite.onnx"), precision)


def test_an_engine_in_half_precision_is_smaller(tiny_backbone: Backbone, tmp_path: Path) -> None:
    sizes = {}
    for precision in ("fp32", "fp16"):
        model = write_zero_shot(tiny_backbone, precision, tmp_path / f"{precision}.onnx")
        build_engine(model, tmp_path / f"{precision}.engine", SETTINGS)
        sizes[precision] = (tmp_path / f"{precision}.engine").stat().st_size
    saved = model_bytes(tmp_path / "fp32.onnx") - model_bytes(tmp_path / "fp16.onnx")
    assert sizes["fp32"] - sizes["fp16"] > 0.5 * saved > 0


def model_bytes(path: Path) -> int:
    return path.stat().st_size


def test_int8_is_refused_by_its_manifest(tiny_backbone: Backbone, tmp_path: Path) -> None:
    model = write_zero_shot(tiny_backbone, "fp32", tmp_path / "m.onnx")
    graph = fuse(read_tower(tiny_backbone), zero_shot_head(tiny_backbone, CLASSES), "tiny")
    manifest = build_zero_shot_manifest(tiny_backbone, CLASSES)
    write_model(graph, dataclasses.replace(manifest, precision="int8"), model)
    with pytest.raises(
        ExportError,
        match="found the flavour rtx, whose int8 is for weights only; expected fp32, fp16 or",
    ) as caught:
        build_engine(model, tmp_path / "m.engine", SETTINGS)
    assert caught.value.exit_code == 6
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_the_command_refuses_int8_before_the_work(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    named = ["export", str(tiny_run / "checkpoint.safetensors"), "--out", str(out), "--trt"]
    flavour = ["--trt-flavour", "rtx"]
    assert main([*named, *flavour, "--precision", "int8"]) == 6
    message = capsys.readouterr().err
    assert "precision int8: found the flavour rtx" in message
    assert "choose fp16" in message
    assert "model:" not in message  # the CLIP was not even loaded
    assert list(tmp_path.iterdir()) == []


def test_the_command_builds_from_float16(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedapt_export.precision import MAX_FEATURE_DIFFERENCE

    # a feature of 32 numbers moves more than one of hundreds
    monkeypatch.setitem(MAX_FEATURE_DIFFERENCE, "fp16", 2e-2)
    out = tmp_path / "model.onnx"
    named = ["export", str(tiny_run / "checkpoint.safetensors"), "--out", str(out), "--trt"]
    options = ["--precision", "fp16", "--force", "--min-agreement", "0", "--trt-flavour", "rtx"]
    assert main([*named, *options]) == 0
    assert describe(tmp_path / "model.engine")["precision"] == "fp16"
