"""A lower precision is written where it is worth it, or where --force says so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fedapt.cli.app import main
from fedapt.core.errors import ExportError, ParityError, UsageError
from fedapt_export import export as export_module
from fedapt_export import precision as precision_module
from fedapt_export.describe import describe
from fedapt_export.model_file import read_manifest
from fedapt_export.precision import MAX_FEATURE_DIFFERENCE, PrecisionReport
from fedapt_export.settings import ExportSettings
from fedapt_runtime import Classifier
from fedapt_runtime.errors import ModelFileError, ReportedError
from tests.support.fusing import save_changed

IMAGES = np.random.default_rng(5).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)

GOOD = PrecisionReport(
    precision="fp16",
    images=1000,
    disagreement=0.0,
    feature_difference=1e-3,
    bytes=50,
    fp32_bytes=100,
    device="cpu",
    images_per_s=200.0,
    fp32_images_per_s=100.0,
)
OPSETS = {"fp16": 20, "bf16": 22, "int8": 20}
NAN = float("nan")
lower = pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])


@pytest.fixture(autouse=True)
def tiny_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feature of 32 numbers moves more than one of hundreds; limits have tests of their own."""
    monkeypatch.setitem(MAX_FEATURE_DIFFERENCE, "fp16", 2e-2)
    monkeypatch.setitem(MAX_FEATURE_DIFFERENCE, "bf16", 0.1)


def set_speeds(monkeypatch: pytest.MonkeyPatch, fp32: float, lowered: float) -> None:
    """As if the machine had measured these, in images per second."""

    def measure(sessions: list[Any], batch: Any) -> list[float]:
        return [fp32, lowered][: len(sessions)]

    monkeypatch.setattr(precision_module, "_time_in_turns", measure)


def export(run: Path, out: Path, *more: str) -> int:
    named = ["export", str(run / "checkpoint.safetensors"), "--out", str(out)]
    return main([*named, "--min-agreement", "0", "--parity-images", "0", *more])


# settings


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"precision": "fp8"}, "precision: found 'fp8'; expected fp32, fp16, bf16, int8"),
        ({"precision": ""}, "precision: found ''"),
        ({"mixing": "soft"}, "mixing: found 'soft'; expected exact or hard"),
        (
            {"precision": "fp16", "calibration": Path("x")},
            "calibration: found precision fp16; expected precision int8",
        ),
        ({"calibration": Path("x")}, "calibration: found precision fp32"),
        (
            {"precision": "fp16", "head_only": True},
            "head_only and precision: found both, with fp16; expected one of them",
        ),
        ({"precision": "int8", "head_only": True}, "found both, with int8"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        ExportSettings(**settings).check()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"precision": "bf16"},
        {"precision": "int8", "calibration": Path("x")},
        {"head_only": True, "mixing": "hard"},
    ],
)
def test_what_goes_together_is_taken(settings: dict[str, Any]) -> None:
    ExportSettings(**settings).check()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("model.engine", ["--trt"], ".onnx, or .safetensors with --head-only"),
        ("model", [], ".onnx, or .safetensors with --head-only"),
        (".", [], ".onnx, or .safetensors with --head-only"),
        ("head.safetensors", [], ".onnx, or .safetensors with --head-only"),
        ("head.onnx", ["--head-only"], ".safetensors with --head-only"),
    ],
)
def test_a_name_of_another_kind_of_file_is_2_before_any_work(
    name: str,
    options: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("fedapt_export.engine.EngineSettings.resolve", lambda s, _: s)
    monkeypatch.chdir(tmp_path)
    assert export(tmp_path / "no such run", Path(name), *options) == 2
    assert capsys.readouterr().err == (
        f"error: --out {name}: found the suffix {Path(name).suffix!r}; expected {expected}."
        " To do: rename the output.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_option_is_2_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    assert export(tmp_path / "no such run", out, "--precision", "fp8") == 2
    assert "found 'fp8'" in capsys.readouterr().err
    assert not out.exists()


# the report's verdict


def changed(**changes: Any) -> PrecisionReport:
    return dataclasses.replace(GOOD, **changes)


@pytest.mark.parametrize(
    ("report", "limit"),
    [
        (GOOD, 0.0),
        (changed(disagreement=0.001), 0.001),
        (changed(disagreement=1.0), 1.0),
        (changed(images_per_s=100.1), 0.0),
    ],
)
def test_a_precision_that_is_worth_it_passes(report: PrecisionReport, limit: float) -> None:
    report.check(limit, "model.onnx")


@pytest.mark.parametrize(
    ("report", "kind", "code", "text"),
    [
        (
            changed(disagreement=0.002),
            ParityError,
            7,
            "found 0.20 % of 1000 images with another label in fp16 than in fp32; expected",
        ),
        (changed(disagreement=NAN), ParityError, 7, "found nan % of 1000 images"),
        (
            changed(images_per_s=None),
            ExportError,
            6,
            "found no operators for fp16 in ONNX Runtime on cpu, so its speed is unknown",
        ),
        (
            changed(images_per_s=99.0),
            ExportError,
            6,
            "found 99 images/s in fp16 and 100 in fp32 on cpu; expected a precision that is faster",
        ),
        (changed(images_per_s=100.0), ExportError, 6, "expected a precision that is faster"),
        (changed(images_per_s=NAN), ExportError, 6, "found nan images/s in fp16"),
        (changed(fp32_images_per_s=NAN), ExportError, 6, "and nan in fp32"),
        # labels come first: they are the graver fault
        (changed(disagreement=0.5, images_per_s=None), ParityError, 7, "50.00 %"),
    ],
)
def test_a_precision_that_is_not_is_refused(
    report: PrecisionReport, kind: type[ReportedError], code: int, text: str
) -> None:
    with pytest.raises(kind) as caught:
        report.check(0.001, "model.onnx")
    assert text in str(caught.value)
    assert "nothing was written" in str(caught.value)
    assert "add `force`" in str(caught.value)
    assert caught.value.exit_code == code


# through the command


def test_a_slower_precision_is_6_and_the_older_file_stays(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_speeds(monkeypatch, 300, 200)
    out = tmp_path / "model.onnx"
    out.write_bytes(b"older")
    assert export(tiny_run, out, "--precision", "fp16", "--max-disagreement", "1") == 6
    captured = capsys.readouterr()
    assert "found 200 images/s in fp16 and 300 in fp32 on" in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert out.read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_faster_one_is_written(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_speeds(monkeypatch, 200, 300)
    out = tmp_path / "model.onnx"
    assert export(tiny_run, out, "--precision", "fp16", "--max-disagreement", "1") == 0
    assert read_manifest(onnx.load(out), out).precision == "fp16"


def test_stored_weights_need_no_speed(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_speeds(monkeypatch, 300, 200)
    whole, out = tmp_path / "whole.onnx", tmp_path / "model.onnx"
    assert export(tiny_run, whole) == 0
    more = ("--precision", "fp16-weights", "--max-disagreement", "1")
    assert export(tiny_run, out, *more) == 0
    assert read_manifest(onnx.load(out), out).precision == "fp16-weights"
    assert out.stat().st_size < 0.65 * whole.stat().st_size
    logits = [Classifier.load(p, device="cpu").backend.run(IMAGES).logits for p in (whole, out)]
    np.testing.assert_allclose(*logits, rtol=0, atol=0.5)
    assert np.abs(logits[0] - logits[1]).max() > 1e-5


def test_stored_weights_are_for_no_engine(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(tiny_run, tmp_path / "m.onnx", "--precision", "fp16-weights", "--trt") == 2
    assert "expected a precision that TensorRT computes in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_has_no_speed_on_a_cpu_and_force_says_so(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    options = ["--precision", "bf16", "--max-disagreement", "1"]
    assert export(tiny_run, out, *options) == 6
    assert "found no operators for bf16 in ONNX Runtime on cpu" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert export(tiny_run, out, *options, "--force", "--json") == 0
    captured = capsys.readouterr()
    assert "forced: no operators for bf16 in ONNX Runtime on cpu" in captured.err
    assert json.loads(captured.out)["against_fp32"]["images_per_s"] is None
    assert out.is_file()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("disagreement", [0.5, NAN])
def test_labels_that_change_are_7(
    force: bool,
    disagreement: float,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = changed(disagreement=disagreement)
    monkeypatch.setattr(export_module, "compare_with_float32", lambda *_, **__: report)
    out = tmp_path / "model.onnx"
    more = ["--force"] if force else []
    assert export(tiny_run, out, "--precision", "fp16", *more) == (0 if force else 7)
    messages = capsys.readouterr().err
    assert "of 1000 images with another label in fp16 than in fp32" in messages
    assert messages.count("forced: ") == force
    assert out.exists() == force


def test_the_share_of_labels_is_counted(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison is of the two graphs: one with its classes turned round disagrees fully."""
    set_speeds(monkeypatch, 1, 2)
    out = tmp_path / "model.onnx"
    assert export(tiny_run, out) == 0
    model, turned = onnx.load(out), onnx.load(out)
    del model.metadata_props[:]
    for tensor in turned.graph.initializer:
        if tensor.name == "logit_scale":
            value = -onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    from fedapt.model.checkpoint import load_checkpoint
    from fedapt_export.images import collect_images, root_of_run

    path = tiny_run / "checkpoint.safetensors"
    images, _ = collect_images(load_checkpoint(path), root_of_run(path), 0)
    same = precision_module.compare_with_float32(model, model, "fp16", images)
    assert (same.disagreement, same.feature_difference, same.images) == (0, 0, 12)
    assert same.bytes == same.fp32_bytes == model.ByteSize()
    assert (same.fp32_images_per_s, same.images_per_s) == (1, 2)
    other = precision_module.compare_with_float32(model, turned, "fp16", images)
    assert (other.disagreement, other.feature_difference) == (1, 0)
    assert (same.by_domain, same.reduced_range) == ({}, False)


def test_accuracy_by_domain_by_hand() -> None:
    truth = [("x", 0), ("y", 1), ("x", 1), ("x", 0), ("y", 0)]
    known = np.eye(2)[[0, 1, 1, 1, 0]]  # right, right, right, wrong, right
    found = np.eye(2)[[1, 0, 1, 0, 0]]  # wrong, wrong, right, right, right
    assert precision_module.compare_by_domain(truth, known, found) == {
        "x": {"images": 3, "fp32": pytest.approx(2 / 3), "accuracy": pytest.approx(2 / 3)},
        "y": {"images": 2, "fp32": 1.0, "accuracy": 0.5},
    }
    assert precision_module.compare_by_domain([], known, found) == {}


@lower
def test_the_file_says_what_it_is_and_is_verified(
    precision: str,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_speeds(monkeypatch, 100, 250)
    out = tmp_path / "model.onnx"
    options = ["--precision", precision, "--max-disagreement", "1", "--force", "--json"]
    assert export(tiny_run, out, *options) == 0
    printed = json.loads(capsys.readouterr().out)
    model = onnx.load(out)
    manifest = read_manifest(model, out)
    assert (manifest.precision, manifest.mixing) == (precision, "exact")
    versions = {entry.domain: entry.version for entry in model.opset_import}
    assert manifest.opset == versions[""] == OPSETS[precision]
    assert manifest.parity["against_fp32"] == printed["against_fp32"]
    against = manifest.parity["against_fp32"]
    assert (against["precision"], against["images"]) == (precision, 12)
    assert against["fp32_images_per_s"] == 100
    assert against["bytes"] < against["fp32_bytes"]
    assert {name: part["images"] for name, part in against["by_domain"].items()} == {
        "sketch": 6,
        "photo": 6,
    }

    facts = describe(out)
    weights = facts["weight_bytes"]
    kind = {"fp16": "float16", "bf16": "bfloat16", "int8": "int8"}[precision]
    assert weights[kind] > 0
    if precision != "int8":
        assert weights[kind] > weights["float"]
    by_hand = sum(
        onnx.numpy_helper.to_array(t).nbytes
        for t in model.graph.initializer
        if onnx.TensorProto.DataType.Name(t.data_type).lower() == kind
    )
    assert weights[kind] == by_hand
    assert facts["precision"] == precision

    named = ["verify", str(out), str(tiny_run / "checkpoint.safetensors")]
    assert main([*named, "--images", "0", "--min-agreement", "0", "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)
    assert verified["images"] == 12
    assert verified["feature_difference"] == pytest.approx(printed["feature_difference"], abs=1e-5)


def test_float32_has_no_comparison(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    assert export(tiny_run, out, "--json") == 0
    assert "against_fp32" not in json.loads(capsys.readouterr().out)
    manifest = read_manifest(onnx.load(out), out)
    assert (manifest.precision, manifest.opset) == ("fp32", 20)
    assert "against_fp32" not in manifest.parity
    assert set(describe(out)["weight_bytes"]) == {"float", "int64"}


def test_verify_refuses_a_precision_that_it_does_not_know(
    tiny_model: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(tiny_model)
    (entry,) = model.metadata_props
    fields = json.loads(entry.value)
    assert fields["precision"] == "fp32"
    entry.value = json.dumps(fields | {"precision": "fp4"})
    out = tmp_path / "model.onnx"
    save_changed(model, out)
    assert main(["verify", str(out), str(tiny_run / "checkpoint.safetensors")]) == 6
    assert "found the precision 'fp4'; expected fp32, fp16, bf16, int8" in capsys.readouterr().err
    model = onnx.load(out)
    model.metadata_props[0].value = "{}"
    onnx.save(model, out)
    with pytest.raises(ModelFileError, match="a damaged manifest"):
        describe(out)
