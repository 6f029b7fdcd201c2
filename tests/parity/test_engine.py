"""Engines are really built, here and without a GPU; running one needs its GPU."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import onnx
import pytest

from fedapt.cli.app import main
from fedapt.core.errors import DependencyError, ExportError, UsageError
from fedapt.core.files import hash_file
from fedapt.model.backbone import load_backbone
from fedapt.onnx.tower import read_tower
from fedapt_export import engine as engine_module
from fedapt_export.describe import describe
from fedapt_export.engine import EngineSettings, build_engine
from fedapt_export.fuse import build_zero_shot_manifest, fuse
from fedapt_export.head import zero_shot_head
from fedapt_export.model_file import write_model
from fedapt_runtime.backends.engine_file import read_engine_file
from fedapt_runtime.backends.engine_plan import MODULES, EnginePlan, import_library
from fedapt_runtime.cli import main as runtime_main
from fedapt_runtime.errors import ModelFileError
from tests.support.fusing import save_changed

needs_rtx = pytest.mark.skipif(
    engine_module.find_spec(MODULES["rtx"]) is None, reason="needs TensorRT-RTX (the extra `rtx`)"
)


@needs_rtx
@pytest.mark.parametrize("capabilities", [(), ("sm89",), ("sm86", "sm120")])
def test_a_vit_becomes_a_plain_engine_with_its_description(
    tiny_model: Path, tmp_path: Path, capabilities: tuple[str, ...]
) -> None:
    out = tmp_path / "model.engine"
    settings = EngineSettings("rtx", capabilities, min_batch=1, opt_batch=4, max_batch=16)
    build_engine(tiny_model, out, settings)
    description = json.loads((tmp_path / "model.engine.json").read_text())
    assert description["flavour"] == "rtx"
    assert description["compute_capabilities"] == (list(capabilities) or ["default"])
    assert description["batch"] == [1, 4, 16]
    assert description["onnx_sha256"] == hash_file(tiny_model)
    assert description["engine_sha256"] == hash_file(out)
    assert description["manifest"]["classes"] == ["blue disc", "red square", "stripes"]
    # the weights are inside: an engine is about as large as its model
    assert out.stat().st_size > 0.5 * tiny_model.stat().st_size
    assert describe(out)["kind"] == "engine"


@needs_rtx
def test_lite_becomes_an_engine(tmp_path: Path) -> None:
    lite = load_backbone("lite")
    classes = ("mug", "laptop computer")
    model = tmp_path / "lite.onnx"
    graph = fuse(read_tower(lite), zero_shot_head(lite, classes), lite.label)
    write_model(graph, build_zero_shot_manifest(lite, classes), model)
    build_engine(model, tmp_path / "lite.engine", EngineSettings("rtx", ("sm89",)))
    description = json.loads((tmp_path / "lite.engine.json").read_text())
    assert description["manifest"]["method"] == "zero-shot"


@needs_rtx
def test_a_graph_that_the_parser_refuses_leaves_the_older_engine(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = onnx.load(tiny_model)
    model.graph.node[0].op_type = "NoSuchOperator"
    save_changed(model, tmp_path / "strange.onnx")
    out = tmp_path / "model.engine"
    out.write_bytes(b"older")
    with pytest.raises(ExportError, match="found a builder that failed"):
        build_engine(tmp_path / "strange.onnx", out, EngineSettings())
    assert out.read_bytes() == b"older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.engine", "strange.onnx"]


@needs_rtx
def test_a_crash_of_the_builder_is_a_message(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -SEGV $$\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(engine_module.sys, "executable", str(python))
    with pytest.raises(ExportError, match=r"a builder that crashed \(SIGSEGV\)") as caught:
        build_engine(tiny_model, tmp_path / "model.engine", EngineSettings())
    assert caught.value.exit_code == 6
    assert not (tmp_path / "model.engine").exists()


def rtx(**options: Any) -> EngineSettings:
    return EngineSettings("rtx", **options)


@needs_rtx
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (rtx(capabilities=("sm90",)), "found sm90, a data centre GPU; expected targets of"),
        (rtx(capabilities=("sm100",)), "build on that GPU with the flavour tensorrt"),
        (rtx(capabilities=("sm42",)), "found sm42; expected targets .*check the spelling"),
        (rtx(refit=True), "refit: found the flavour rtx.*omit refit"),
        (rtx(timing_cache=Path("t.cache")), "timing cache: found the flavour rtx"),
    ],
)
def test_wrong_settings_are_refused(settings: EngineSettings, text: str) -> None:
    assert rtx(capabilities=("sm75", "sm121")).resolve().flavour == "rtx"
    with pytest.raises(ExportError, match=text) as caught:
        settings.resolve()
    assert caught.value.exit_code == 6


@needs_rtx
def test_int8_is_refused_for_rtx() -> None:
    with pytest.raises(ExportError, match="the flavour rtx, whose int8 is for weights only"):
        rtx().resolve("int8")


@pytest.mark.parametrize(
    ("settings", "precision", "expected"),
    [
        (EngineSettings(), "fp16", ""),
        (EngineSettings(), "int8", "no module tensorrt"),
        (EngineSettings(refit=True), "fp16", "no module tensorrt"),
        (EngineSettings(timing_cache=Path("t.cache")), "fp16", "no module tensorrt"),
        (EngineSettings(capabilities=("sm89",)), "int8", ""),  # refused by resolve
        (rtx(), "int8", ""),
    ],
)
def test_auto_leaves_to_tensorrt_what_rtx_lacks(
    settings: EngineSettings, precision: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"rtx"}
    monkeypatch.setattr(engine_module, "_is_installed", lambda flavour: flavour in installed)
    assert settings.find_obstacle(precision) == expected


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (EngineSettings("trt"), "'trt'; expected auto, rtx, tensorrt"),
        (EngineSettings(min_batch=8, opt_batch=4), "expected 1 <= min <= opt <= max"),
        (EngineSettings(min_batch=0), "found 0, 32, 128"),
    ],
)
def test_what_is_wrong_anywhere_is_refused(settings: EngineSettings, text: str) -> None:
    for refuse in (settings.check, settings.resolve):
        with pytest.raises(UsageError, match=text) as caught:
            refuse()
        assert caught.value.exit_code == 2
    EngineSettings(min_batch=8, opt_batch=8, max_batch=8).check()


def test_tensorrt_takes_its_gpu_and_no_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "find_spec", lambda _: object())
    monkeypatch.setattr(engine_module, "find_gpu", lambda: "")
    native = EngineSettings("tensorrt", refit=True)
    with pytest.raises(
        ExportError, match=r"no usable NVIDIA GPU \(.*use the flavour rtx"
    ) as caught:
        native.resolve()
    assert caught.value.exit_code == 6
    assert EngineSettings().resolve().flavour == "rtx"
    monkeypatch.setattr(engine_module, "find_gpu", lambda: "sm90")
    assert native.resolve() == native
    assert EngineSettings().resolve().flavour == "tensorrt"
    assert EngineSettings(capabilities=("sm89",)).resolve().flavour == "rtx"
    with pytest.raises(ExportError, match="expected no targets: this flavour builds for the GPU"):
        EngineSettings("tensorrt", ("sm89",)).resolve()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--trt-flavour", "nonsense"], "--trt-flavour"),
        (["--trt-flavour", "auto"], "--trt-flavour"),  # given, be it the default
        (["--compute-capability", "sm89"], "--compute-capability"),
        (["--min-batch", "1"], "--min-batch"),
        (["--opt-batch", "8"], "--opt-batch"),
        (["--max-batch", "8"], "--max-batch"),
        (["--timing-cache", "t"], "--timing-cache"),
        (["--refit"], "--refit"),
        (["--triton", "r", "--min-batch", "2"], "--min-batch"),
    ],
)
def test_an_option_of_an_engine_without_one_is_2(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "absent.safetensors", "--out", str(tmp_path / "model.onnx")]
    assert main([*command, *options]) == 2
    assert capsys.readouterr().err == (
        f"error: {told}: found a command without --trt; expected --trt, which builds the TensorRT"
        " engine. To do: add --trt, or remove this option.\n"
    )


@pytest.mark.parametrize("needs", [["--trt"], ["--triton", "r"]])
def test_batch_sizes_out_of_order_are_2(
    needs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "absent.safetensors", "--out", str(tmp_path / "model.onnx"), *needs]
    assert main([*command, "--max-batch", "8"]) == 2
    assert "batch sizes min, opt, max: found 1, 32, 8" in capsys.readouterr().err


def test_without_the_library_nothing_is_exported(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(engine_module, "find_spec", lambda _: None)
    out = tmp_path / "model.onnx"
    checkpoint = str(tiny_run / "checkpoint.safetensors")
    assert main(["export", checkpoint, "--out", str(out), "--trt", "--trt-flavour", "rtx"]) == 9
    assert "pip install 'fedapt[rtx]'" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(DependencyError, match="no module tensorrt; expected TensorRT 10 or 11"):
        EngineSettings("tensorrt").resolve()


@pytest.mark.parametrize(
    ("flavour", "has_library", "reason"),
    [
        ("auto", False, "no module tensorrt"),
        ("tensorrt", False, "no module tensorrt"),
        ("tensorrt", True, "no usable NVIDIA GPU ("),
    ],
)
def test_where_tensorrt_cannot_build_a_script_is_written_that_builds_elsewhere(
    flavour: str,
    has_library: bool,
    reason: str,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(engine_module, "find_spec", lambda _: object() if has_library else None)
    monkeypatch.setattr(engine_module, "find_gpu", lambda: "")
    out = tmp_path / "model.onnx"
    command = ["export", str(tiny_run / "checkpoint.safetensors"), "--out", str(out)]
    options = ["--min-agreement", "0", "--trt", "--trt-flavour", flavour, "--max-batch", "48"]
    assert main([*command, *options]) == 0
    script = tmp_path / "build_engine.sh"
    assert f"written: {script}; no engine is built here ({reason}" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["build_engine.sh", "model.onnx"]
    assert "--maxShapes=images:48x64x64x3" in script.read_text()
    assert hash_file(out) in script.read_text()


@needs_rtx
def test_the_command_writes_model_and_engine(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    command = ["export", str(tiny_run / "checkpoint.safetensors"), "--out", str(out), "--trt"]
    options = ["--min-agreement", "0", "--compute-capability", "SM89, sm120", "--max-batch", "32"]
    assert main([*command, *options]) == 0
    assert "sm89, sm120); not verified: its GPU is not in this machine" in capsys.readouterr().err
    names = ["model.engine", "model.engine.json", "model.onnx"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert main([*command, "--head-only"]) == 2


@needs_rtx
def test_an_engine_without_its_description_or_with_anothers_is_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.engine"
    build_engine(tiny_model, out, EngineSettings("rtx", ("sm89",)))
    assert describe(out)["classes"] == ("blue disc", "red square", "stripes")
    beside = tmp_path / "model.engine.json"
    description = json.loads(beside.read_text())
    description["engine_sha256"] = "0" * 64
    beside.write_text(json.dumps(description))
    with pytest.raises(ModelFileError, match=r"expected hash 0{12}, which model\.engine\.json"):
        describe(out)
    beside.unlink()
    with pytest.raises(ModelFileError, match="found no readable description of the engine"):
        describe(out)


@needs_rtx
def test_an_engine_where_there_is_no_gpu_is_8_with_a_line(
    tiny_model: Path,
    tiny_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU")
    out = tmp_path / "model.engine"
    build_engine(tiny_model, out, EngineSettings("rtx", ("sm89",), 1, 4, 16))
    image = str(tiny_images / "photo" / "stripes" / "000.png")
    assert runtime_main(["classify", str(out), image]) == 8
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: CUDA: found ")
    assert "expected an NVIDIA GPU with its driver" in captured.err
    assert len(captured.err.splitlines()) == 1
    head = tmp_path / "head.safetensors"
    assert runtime_main(["classify", str(out), image, "--head", str(head)]) == 8
    assert "found a head for a TensorRT engine" in capsys.readouterr().err


@needs_rtx
def test_a_plan_that_is_none_is_refused_by_the_library_itself(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.engine"
    build_engine(tiny_model, out, EngineSettings("rtx", ("sm89",)))
    engine_file = read_engine_file(out)
    assert (engine_file.flavour, engine_file.capabilities) == ("rtx", ("sm89",))
    out.write_bytes(b"no plan" * 100)
    capfd.readouterr()
    with pytest.raises(ModelFileError, match=r"TensorRT-RTX \S+ refuses \(.*MALFORMED_ENGINE"):
        EnginePlan(import_library("rtx"), engine_file)
    assert capfd.readouterr() == ("", "")  # the library's own words are in the error, once
