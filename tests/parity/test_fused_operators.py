"""ONNX Runtime's fused operators compute what the traced operators compute."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedapt.cli.app import main
from fedapt.core.errors import ExportError, UsageError
from fedapt.core.report import Reporter
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.onnx.rewrite import rewrite_for_tracing
from fedapt.onnx.tower import read_tower
from fedapt.onnx.trace import trace_to_onnx
from fedapt.onnx.weights import hold_weights, open_model
from fedapt_export import export as export_module
from fedapt_export.deliver import deliver
from fedapt_export.fused_operators import DOMAIN, fuse_operators
from fedapt_export.half import to_half
from fedapt_export.settings import ExportSettings
from fedapt_runtime import Classifier
from fedapt_runtime.backends.choose import list_candidates, load_backend
from fedapt_runtime.backends.ort import layout_options
from fedapt_runtime.errors import ReportedError
from fedapt_runtime.onnx_file import open_onnx
from fedapt_runtime.options import LoadOptions
from tests.support.fusing import export_run


def run(model: onnx.ModelProto, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
    session = open_model(model, "cpu", "the graph")
    rows: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    return rows


def count_operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def noise(batch: int) -> NDArray[np.uint8]:
    return np.random.default_rng(batch).integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8)


def with_biases(tower: onnx.ModelProto) -> onnx.ModelProto:
    """Fresh weights have no biases, which would hide one that is lost or in another's place."""
    tower, rng = hold_weights(tower), np.random.default_rng(0)
    for tensor in tower.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 1:
            moved = values + 0.3 * rng.standard_normal(values.shape).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(moved, tensor.name))
    return tower


@pytest.fixture(scope="module")
def tower(tiny_backbone: Backbone) -> onnx.ModelProto:
    return with_biases(read_tower(tiny_backbone))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-5), ("fp16", 2e-2)])
def test_a_tower_gives_the_same_features(
    tower: onnx.ModelProto, precision: str, tolerance: float
) -> None:
    traced = tower if precision == "fp32" else to_half(tower, precision)
    before = traced.SerializeToString()
    fused, n_fused = fuse_operators(traced)
    blocks = count_operators(tower)["Softmax"]
    counts = count_operators(fused)
    # the last block reads the class token alone, and has queries of another length
    assert counts["Attention"] == blocks - 1
    assert counts["MultiHeadAttention"] == 1
    assert counts["SkipLayerNormalization"] == 2 * blocks
    assert counts["Softmax"] == 0
    assert n_fused == 3 * blocks
    assert len(fused.graph.node) < len(traced.graph.node) / 2
    assert traced.SerializeToString() == before
    for batch in (1, 2, 7):
        found, expected = run(fused, noise(batch)), run(traced, noise(batch))
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_a_lost_bias_is_seen(tower: onnx.ModelProto) -> None:
    fused, _ = fuse_operators(tower)
    node = next(node for node in fused.graph.node if node.op_type == "Attention")
    bias = next(t for t in fused.graph.initializer if t.name == node.input[2])
    none = np.zeros_like(onnx.numpy_helper.to_array(bias))
    bias.CopyFrom(onnx.numpy_helper.from_array(none, bias.name))
    expected = run(tower, noise(2))
    assert np.abs(run(fused, noise(2)) - expected).max() > 1e-3 * np.abs(expected).max()


class _WithoutBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(16, 2, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return y


def test_attention_without_biases() -> None:
    module = _WithoutBias().eval()
    rewrite_for_tracing(module)
    model = trace_to_onnx(module, torch.zeros(2, 5, 16), "x", ["y"])
    fused, n_fused = fuse_operators(model)
    assert n_fused == 1
    assert count_operators(fused)["MultiHeadAttention"] == 1
    x = np.random.default_rng(0).standard_normal((3, 5, 16)).astype(np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run(fused, x), expected, rtol=0, atol=1e-6)


class _Masked(nn.Module):
    """Attention with a mask, which the fused operator would lose."""

    def forward(self, x: Tensor) -> Tensor:
        heads = x.view(x.shape[0], 4, 2, 8).transpose(1, 2)
        mask = torch.triu(torch.full((4, 4), -1e4), 1)
        y = nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)
        return y.transpose(1, 2).reshape(x.shape[0], 4, 16)


def test_attention_with_a_mask_stays_as_it_is() -> None:
    model = trace_to_onnx(_Masked().eval(), torch.zeros(2, 4, 16), "x", ["y"])
    fused, n_fused = fuse_operators(model)
    assert n_fused == 0
    assert count_operators(fused)["Softmax"] == 1
    x = np.random.default_rng(0).standard_normal((3, 4, 16)).astype(np.float32)
    np.testing.assert_array_equal(run(fused, x), run(model, x))


def test_an_exported_model_says_whose_operators_it_has(tiny_run: Path, tmp_path: Path) -> None:
    path, plain = tmp_path / "fused.onnx", tmp_path / "plain.onnx"
    exported = export_run(tiny_run, path, operators="onnxruntime")
    export_run(tiny_run, plain)
    assert exported.manifest.operators == "onnxruntime"
    assert DOMAIN in {entry.domain for entry in onnx.load(path).opset_import}
    assert DOMAIN not in {entry.domain for entry in onnx.load(plain).opset_import}
    a, b = (load_backend(p, LoadOptions(backend="onnxruntime")) for p in (path, plain))
    assert (a.manifest.operators, b.manifest.operators) == ("onnxruntime", "onnx")
    for batch in (1, 5):
        found, expected = a.run(noise(batch)), b.run(noise(batch))
        np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(found.logits.argmax(1), expected.logits.argmax(1))


def test_openvino_does_not_read_such_a_model(tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path, plain = tmp_path / "fused.onnx", tmp_path / "plain.onnx"
    export_run(tiny_run, path, operators="onnxruntime")
    export_run(tiny_run, plain)
    found = {c.backend for c in list_candidates(path, "auto", "cpu", "auto")}
    assert found == {"onnxruntime"}
    found = {c.backend for c in list_candidates(plain, "auto", "cpu", "auto")}
    assert found == {"onnxruntime", "openvino"}
    with pytest.raises(ReportedError, match="operators of ONNX Runtime, for the backend openvino"):
        Classifier.load(path, backend="openvino")


def test_a_cnn_gains_nothing(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cnn = read_tower(load_backbone("lite"))
    fused, n_fused = fuse_operators(cnn)
    assert n_fused == 0
    assert count_operators(fused) == count_operators(cnn)
    monkeypatch.setattr(export_module, "fuse_operators", lambda tower: (tower, 0))
    with pytest.raises(ExportError, match="without attention or LayerNorm"):
        export_run(tiny_run, tmp_path / "model.onnx", operators="onnxruntime")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"operators": "tensorrt"}, "'tensorrt'"),
        ({"operators": "onnxruntime", "precision": "int8"}, "onnxruntime with precision int8"),
        ({"operators": "onnxruntime", "precision": "bf16"}, "onnxruntime with precision bf16"),
        ({"operators": "onnxruntime", "head_only": True}, "onnxruntime with `head_only`"),
    ],
)
def test_settings_that_exclude_each_other(settings: dict[str, object], found: str) -> None:
    with pytest.raises(UsageError) as raised:
        ExportSettings(**settings).check()  # type: ignore[arg-type]
    assert raised.value.found == found


@pytest.mark.parametrize("target", ["trt", "web"])
def test_only_onnx_runtime_runs_it(tiny_run: Path, tmp_path: Path, target: str) -> None:
    out = tmp_path / "model.onnx"
    with pytest.raises(UsageError, match=f"operators and {target}: found both"):
        deliver(
            tiny_run / "checkpoint.safetensors",
            out,
            ExportSettings(operators="onnxruntime"),
            Reporter(),
            trt=target == "trt",
            web=tmp_path / "page" if target == "web" else None,
        )
    assert list(tmp_path.iterdir()) == []


def test_the_command(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, out = str(tiny_run / "checkpoint.safetensors"), tmp_path / "model.onnx"
    command = ["export", checkpoint, "--out", str(out), "--min-agreement", "0"]
    assert main([*command, "--operators", "onnxruntime"]) == 0
    assert "operators of ONNX Runtime; no other library reads the file" in capsys.readouterr().err
    assert Classifier.load(out, backend="onnxruntime").manifest.operators == "onnxruntime"


def test_float16_convolutions_have_their_channels_last_on_a_gpu() -> None:
    assert layout_options("fp16", {"Conv", "Clip"}) == {"prefer_nhwc": "1"}
    assert layout_options("fp32", {"Conv", "Clip"}) == {}
    # without convolutions, ONNX Runtime would only move nodes to the CPU
    assert layout_options("fp16", {"MatMul", "Attention"}) == {}


def test_the_operators_of_a_file_are_read_without_onnx(tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "fused.onnx"
    export_run(tiny_run, path, operators="onnxruntime")
    expected = {node.op_type for node in onnx.load(path).graph.node}
    assert {"Attention", "MatMul"} <= expected
    assert open_onnx(path).operators == expected
