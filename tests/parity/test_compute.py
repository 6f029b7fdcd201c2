"""The export counts the labels that products in bfloat16 would change; the runtime reads it."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fedapt.core.report import Reporter
from fedapt_export import compute
from fedapt_export.compute import emulate_bfloat16_products
from fedapt_export.export import export
from fedapt_export.settings import ExportSettings
from fedapt_runtime.agreement import Agreement, read_agreement
from fedapt_runtime.backends.model_checks import read_manifest
from fedapt_runtime.backends.ort import import_onnxruntime


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_weights_and_intermediate_values_are_rounded_and_biases_are_not() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 3)).astype(np.float32)
    w = generator.standard_normal((3, 4)).astype(np.float32)
    b = generator.standard_normal(4).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Add", ["product", "b"], ["sum"]),
            helper.make_node("Neg", ["sum"], ["y"]),
        ],
        "three steps",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    before = model.SerializeToString()
    emulated = emulate_bfloat16_products(model)
    assert model.SerializeToString() == before
    session = import_onnxruntime().InferenceSession(emulated.SerializeToString())
    (found,) = session.run(["y"], {"x": x})
    expected = -round_to_bfloat16(round_to_bfloat16(x @ round_to_bfloat16(w)) + b)
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found + (x @ w + b)).max() > 1e-4  # the negative: float32 is another result


def test_the_export_counts_changed_labels(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.onnx"
    exported = export(tiny_run / "checkpoint.safetensors", out, ExportSettings(), Reporter())
    manifest = read_manifest(out)
    found = manifest.parity["computed_in"]["bf16"]
    assert found["images"] == len(exported.images)
    assert 0 < found["feature_difference"] < 0.1
    agreement = read_agreement(manifest, "bf16")
    assert agreement == Agreement(found["images"], found["changed"])
    # a tower whose every value is lost has other labels
    monkeypatch.setattr("fedapt_export.export.emulate_bfloat16_products", erase)
    export(tiny_run / "checkpoint.safetensors", out, ExportSettings(), Reporter())
    erased = read_agreement(read_manifest(out), "bf16")
    assert erased is not None
    assert erased.changed > 0
    assert not erased.is_enough


def erase(tower: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(tower)
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            values = -np.ones(tuple(tensor.dims), np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return copy


@pytest.mark.parametrize("reason", ["noise", "too large"])
def test_what_was_not_measured_is_not_claimed(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    checkpoint = tiny_run / "checkpoint.safetensors"
    if reason == "noise":
        checkpoint = tmp_path / "alone.safetensors"
        checkpoint.write_bytes((tiny_run / "checkpoint.safetensors").read_bytes())
    else:
        monkeypatch.setattr(compute, "MAX_BYTES", 1000)
    export(checkpoint, tmp_path / "model.onnx", ExportSettings(), Reporter())
    manifest = read_manifest(tmp_path / "model.onnx")
    assert "computed_in" not in json.loads(manifest.to_json())["parity"]
    assert read_agreement(manifest, "bf16") is None
