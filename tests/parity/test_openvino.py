"""OpenVINO computes what ONNX Runtime computes, and refuses what it refuses."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch.nn.functional import normalize

from fedapt.model.backbone import load_backbone
from fedapt_export.fuse import build_zero_shot_manifest
from fedapt_export.head import Head
from fedapt_export.swap import write_head
from fedapt_runtime import Classifier
from fedapt_runtime.backends.base import Backend, Outputs
from fedapt_runtime.backends.choose import load_backend
from fedapt_runtime.errors import MissingDependency, ModelFileError
from fedapt_runtime.head import read_head
from fedapt_runtime.options import LoadOptions
from tests.support.fusing import save_changed, save_head

pytest.importorskip("openvino", reason="OpenVINO is not installed")


def noise(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A head of three domains and four classes; the model's own has two and three."""
    generator = torch.Generator().manual_seed(0)
    backbone = load_backbone(str(tiny_clip))
    width = backbone.joint_width
    banks = normalize(torch.randn(3, 4, width, generator=generator), dim=-1)
    network = torch.randn(3, width, generator=generator)
    manifest = build_zero_shot_manifest(backbone, ("a", "b", "c", "d"))
    fields = {**vars(manifest), "domains": ("x", "y", "z")}
    out = tmp_path_factory.mktemp("head") / "head.safetensors"
    write_head(Head(banks, network, 0.2, backbone.logit_scale), type(manifest)(**fields), out)
    return out


def assert_same(found: Outputs, expected: Outputs) -> None:
    for name, a, b in zip(Outputs._fields, found, expected, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("batch", [1, 2, 5, 32])
@pytest.mark.parametrize("swapped", [False, True])
def test_all_outputs_agree(tiny_model: Path, head: Path, batch: int, swapped: bool) -> None:
    own: list[Backend] = [
        load_backend(tiny_model, LoadOptions(name, head=head if swapped else None))
        for name in ("openvino", "onnxruntime")
    ]
    found, expected = (backend.run(noise(batch)) for backend in own)
    assert found.logits.shape == (batch, 4 if swapped else 3)
    assert found.domain_weights.shape == (batch, 3 if swapped else 2)
    assert expected.logits.std() > 0.01  # else everything would agree
    assert_same(found, expected)
    assert own[0].manifest == own[1].manifest


def test_many_threads_get_the_same_answers(tiny_model: Path) -> None:
    backend = load_backend(tiny_model, LoadOptions("openvino"))
    batches = [noise(n) for n in (1, 2, 3, 4, 5)]
    expected = [backend.run(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, one in zip(pool.map(backend.run, batches), expected, strict=True):
                assert_same(found, one)


def test_a_result_outlives_the_next_call(tiny_model: Path) -> None:
    backend = load_backend(tiny_model, LoadOptions("openvino"))
    first = backend.run(noise(3))
    kept = [output.copy() for output in first]
    backend.run(255 - noise(3))
    assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))


def test_the_same_labels_through_the_classifier(tiny_model: Path, tiny_images: Path) -> None:
    paths = sorted(tiny_images.glob("*/*/00[0-4].png"))
    found, expected = (
        Classifier.load(tiny_model, name)(paths, batch_size=7) for name in ("openvino", "auto")
    )
    assert [p.label for p in found] == [p.label for p in expected]
    assert [p.routed_to for p in found] == [p.routed_to for p in expected]


def without_manifest(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def with_other_output(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Identity", ["logits"], ["scores"]))
    model.graph.output[0].name = "scores"


def without_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "NoSuchOperator"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (without_manifest, "found an ONNX file without a fedapt manifest"),
        (with_other_output, r"and outputs \{'scores'.+; expected images uint8"),
        (without_operator, "found a file that OpenVINO cannot load"),
    ],
)
def test_foreign_models_are_refused(
    tiny_model: Path, tmp_path: Path, change: object, text: str
) -> None:
    model = onnx.load(tiny_model)
    change(model)  # type: ignore[operator]
    save_changed(model, tmp_path / "other.onnx")
    with pytest.raises(ModelFileError, match=text):
        load_backend(tmp_path / "other.onnx", LoadOptions("openvino"))


@pytest.mark.parametrize("data", [b"", b"text", b"\x08\x0a" * 400])
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"model\.onnx: found .+; expected a model written by"):
        load_backend(path, LoadOptions("openvino"))
    with pytest.raises(ModelFileError, match=r"none\.onnx: found no such file"):
        load_backend(tmp_path / "none.onnx", LoadOptions("openvino"))


def test_a_head_of_another_clip_is_refused(tiny_model: Path, head: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_model)
    (entry,) = model.metadata_props
    entry.value = entry.value.replace('"sha256": "', '"sha256": "0')
    save_changed(model, tmp_path / "other.onnx")
    with pytest.raises(ModelFileError, match="found a head of a CLIP with hash"):
        load_backend(tmp_path / "other.onnx", LoadOptions("openvino", head=head))


def test_a_head_of_another_width_is_refused(tiny_model: Path, head: Path, tmp_path: Path) -> None:
    tensors = load_file(head)
    tensors["text_banks"] = tensors["text_banks"][:30].copy()
    tensors["adaptive_network"] = tensors["adaptive_network"][:30].copy()
    save_head(tensors, read_head(head).manifest, tmp_path / "narrow.safetensors")
    for backend in ("openvino", "onnxruntime"):
        with pytest.raises(ModelFileError, match=r"found .+; expected a model"):
            load_backend(tiny_model, LoadOptions(backend, head=tmp_path / "narrow.safetensors"))


def test_a_graph_without_a_swappable_head_is_refused(
    tiny_model: Path, head: Path, tmp_path: Path
) -> None:
    model = onnx.load(tiny_model)
    for named in (*model.graph.initializer, *model.graph.input):
        if named.name == "logit_scale":
            named.name = "scale"
    for node in model.graph.node:
        node.input[:] = ["scale" if name == "logit_scale" else name for name in node.input]
    save_changed(model, tmp_path / "fixed.onnx")
    with pytest.raises(ModelFileError, match="found a graph without logit_scale; expected a model"):
        load_backend(tmp_path / "fixed.onnx", LoadOptions("openvino", head=head))


def test_without_openvino_the_line_that_brings_it_is_told(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependency, match=r"pip install 'fedapt-runtime\[openvino\]'") as it:
        load_backend(tiny_model, LoadOptions("openvino"))
    assert it.value.exit_code == 9
