"""The fused file: its contents, its parity report, and what happens when parity fails."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fedapt.core.errors import CheckpointError, ExportError, ParityError
from fedapt.core.report import Reporter
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.checkpoint import load_checkpoint
from fedapt.model.head import Head
from fedapt.onnx.tower import read_tower
from fedapt.onnx.weights import hold_weights
from fedapt_export import export as export_module
from fedapt_export import parity as parity_module
from fedapt_export.fuse import fuse
from fedapt_export.head import zero_shot_head
from fedapt_export.parity import Parity, measure_parity
from fedapt_export.settings import ExportSettings
from fedapt_runtime import Classifier
from fedapt_runtime.manifest import METADATA_KEY
from tests.support.fusing import as_fusable, export_run
from tests.support.normalising import normalise
from tests.support.tiny import write_tiny_clip

GOOD = {
    "images": 4,
    "source": "noise",
    "batch_sizes": (1, 2),
    "feature_difference": 1e-6,
    "probability_difference": 1e-6,
    "one_hot": 1.0,
    "agreement": 1.0,
    "exact_logit_difference": 0.0,
    "exact_probability_difference": 0.0,
}


def noise(backbone: Backbone, count: int) -> np.ndarray:
    height, width = backbone.preprocessing.size
    shape = (count, height, width, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def test_the_graph_has_the_documented_border_and_one_opset(tiny_model: Path) -> None:
    model = onnx.load(tiny_model)
    image, *head = model.graph.input
    assert image.name == "images"
    # the head's tensors are inputs, and each has a default
    defaults = {initializer.name for initializer in model.graph.initializer}
    assert {value.name for value in head} == {
        "text_banks",
        "gram",
        "adaptive_network",
        "temperature",
        "logit_scale",
        "bank_shape",
        "gram_shape",
        "other_domains",
        "bank_bias",
        "router_bias",
        "router_takes_unit",
        "router_standardised",
    }
    assert {value.name for value in head} <= defaults
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == [
        "batch",
        64,
        64,
        3,
    ]
    assert [o.name for o in model.graph.output] == ["logits", "domain_weights", "features"]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert {p.key for p in model.metadata_props} == {METADATA_KEY}


def test_layer_norm_is_one_operator_and_no_text_tower_is_inside(tiny_model: Path) -> None:
    model = onnx.load(tiny_model)
    kinds = collections.Counter(node.op_type for node in model.graph.node)
    assert kinds["LayerNormalization"] == 2 * 2 + 2  # two blocks, before and after them
    assert not any("token_embedding" in i.name for i in model.graph.initializer)


def test_the_file_names_no_source_file_of_this_machine(tiny_model: Path) -> None:
    assert b".py" not in tiny_model.read_bytes()


def test_the_folder_of_the_clip_is_in_the_checkpoint_alone(
    tiny_run: Path, tiny_clip: Path, tiny_model: Path, tmp_path: Path
) -> None:
    # evaluate, export and verify load the CLIP from there; docs/artifact.md says so
    folder = str(tiny_clip.parent).encode()
    assert folder in (tiny_run / "checkpoint.safetensors").read_bytes()
    export_run(tiny_run, tmp_path / "head.safetensors", head_only=True)
    for exported in (tiny_model, tmp_path / "head.safetensors"):
        assert tiny_clip.name.encode() in exported.read_bytes()
        assert folder not in exported.read_bytes()


def test_the_same_checkpoint_gives_the_same_bytes(
    tiny_run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.onnx"
    export_run(tiny_run, again)
    assert again.read_bytes() == tiny_model.read_bytes()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_runtime_computes_what_the_checkpoint_means(
    tiny_run: Path, tiny_model: Path, tiny_backbone: Backbone, batch: int
) -> None:
    model = load_checkpoint(tiny_run / "checkpoint.safetensors").to_global_model(tiny_backbone)
    images = noise(tiny_backbone, batch)
    parity = measure_parity(
        onnx.load(tiny_model), as_fusable(model), tiny_backbone, images, "noise"
    )
    assert parity.feature_difference < 1e-5
    assert parity.probability_difference < 1e-4
    classifier = Classifier.load(tiny_model)
    transform = torch.from_numpy(normalise(tiny_backbone.preprocessing, images))
    with torch.inference_mode():
        features = tiny_backbone.clip.encode_image(transform.permute(0, 3, 1, 2))
    expected = model.head.logits(features).softmax(-1)
    for row, prediction in zip(expected, classifier(list(images)), strict=True):
        assert prediction.label == classifier.manifest.classes[int(row.argmax())]
        assert prediction.score == pytest.approx(float(row.max()), abs=1e-4)


def test_a_head_needs_no_image_tower_once_the_features_are_known(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    known = export_run(tiny_run, first, head_only=True).parity

    def refuse(*_: object) -> None:
        raise AssertionError("the image tower was read")

    for place in (
        "fedapt_export.export.read_fusable_tower",
        "fedapt.onnx.image_encoder.open_model",
    ):
        monkeypatch.setattr(place, refuse)
    parity = export_run(tiny_run, second, head_only=True).parity
    assert second.read_bytes() == first.read_bytes()
    assert parity == known
    assert parity.feature_difference is None  # nothing of the tower was compared
    monkeypatch.undo()
    expected = export_run(tiny_run, tmp_path / "model.onnx").parity
    assert parity.probability_difference <= 1e-6
    assert (parity.images, parity.agreement) == (expected.images, expected.agreement)
    assert parity.exact_logit_difference == pytest.approx(expected.exact_logit_difference, abs=1e-3)
    # the negative: the features of other images are computed, which takes the tower
    for place in (
        "fedapt_export.export.read_fusable_tower",
        "fedapt.onnx.image_encoder.open_model",
    ):
        monkeypatch.setattr(place, refuse)
    checkpoint = tmp_path / "alone.safetensors"  # noise in place of images
    checkpoint.write_bytes((tiny_run / "checkpoint.safetensors").read_bytes())
    with pytest.raises(AssertionError, match="the image tower was read"):
        export_module.export(
            checkpoint, second, ExportSettings(head_only=True, min_agreement=0), Reporter()
        )


def test_a_head_that_computes_something_else_is_refused(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = parity_module.build_head

    def wrong(head: Head) -> onnx.ModelProto:
        return real(dataclasses.replace(head, banks=-head.banks))

    monkeypatch.setattr(parity_module, "build_head", wrong)
    out = tmp_path / "head.safetensors"
    with pytest.raises(ParityError, match="probabilities differ by"):
        export_run(tiny_run, out, head_only=True)
    assert not out.exists()


def test_one_domain_alone(tiny_backbone: Backbone, tiny_run: Path) -> None:
    checkpoint = load_checkpoint(tiny_run / "checkpoint.safetensors")
    model = checkpoint.to_global_model(tiny_backbone)
    alone = type(model)(
        model.text,
        model.context,
        model.adaptive_network[:1],
        model.keys[:1],
        model.temperature,
        model.logit_scale,
    )
    graph = fuse(read_tower(tiny_backbone), alone.head, "tiny")
    parity = measure_parity(
        graph, as_fusable(alone), tiny_backbone, noise(tiny_backbone, 3), "noise"
    )
    parity.check(1.0, "one domain")
    assert parity.one_hot == 1.0


@pytest.mark.parametrize(
    ("figure", "value", "text"),
    [
        ("feature_difference", 2e-4, "unit features differ by 2.00e-04"),
        ("feature_difference", float("nan"), "unit features differ by nan"),
        ("probability_difference", 2e-3, "probabilities differ by 2.00e-03"),
        ("agreement", 0.95, "95.00 % of 4 images keep their label"),
        ("agreement", float("nan"), "nan % of 4 images"),
    ],
)
def test_a_figure_beyond_its_limit_is_an_error(figure: str, value: float, text: str) -> None:
    Parity(**GOOD).check(0.98, "model.onnx")
    with pytest.raises(ParityError, match=text) as caught:
        Parity(**(GOOD | {figure: value})).check(0.98, "model.onnx")
    assert caught.value.exit_code == 7


def test_a_failed_parity_leaves_the_older_file(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.onnx"
    out.write_bytes(b"older")
    real = export_module.fuse

    def wrong(tower: onnx.ModelProto, head: Head, label: str) -> onnx.ModelProto:
        model = real(tower, head, label)
        for initializer in model.graph.initializer:
            if initializer.name == "text_banks":
                banks = onnx.numpy_helper.to_array(initializer)
                wrong_banks = onnx.numpy_helper.from_array(-banks, "text_banks")
                initializer.CopyFrom(wrong_banks)
        return model

    monkeypatch.setattr(export_module, "fuse", wrong)
    with pytest.raises(ParityError, match="probabilities differ"):
        export_run(tiny_run, out)
    assert out.read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_checkpoint_of_another_clip_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    other = load_backbone(str(write_tiny_clip(tmp_path / "other", seed=1)))
    checkpoint = load_checkpoint(tiny_run / "checkpoint.safetensors")
    with pytest.raises(CheckpointError, match=r"found weights of hash .* expected .*trained on"):
        checkpoint.to_global_model(other)


def test_too_little_memory_is_an_error_and_leaves_the_file(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(export_module, "fuse", fail)
    monkeypatch.setattr(export_module, "usable_memory", lambda: 24_000_000_000)
    out = tmp_path / "model.onnx"
    out.write_bytes(b"older")
    with pytest.raises(
        ExportError, match="found too little memory in 24 GB; expected a few times the weights"
    ) as caught:
        export_run(tiny_run, out)
    assert caught.value.exit_code == 6
    assert out.read_bytes() == b"older"
    monkeypatch.setattr(export_module, "usable_memory", lambda: None)
    with pytest.raises(ExportError, match="found too little memory; expected"):
        export_run(tiny_run, out)


def test_memory_is_checked_before_the_work(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(export_module, "read_fusable_tower", fail)
    memory = "fedapt.onnx.memory.usable_memory"
    monkeypatch.setattr(memory, lambda: 600_000_000)
    out = tmp_path / "model.onnx"
    for precision in ("fp32", "fp16"):
        message = rf"found 0\.6 GB of memory; expected about 0\.6 GB to export it in {precision}"
        with pytest.raises(ExportError, match=message):
            export_run(tiny_run, out, precision=precision)
    assert not out.exists()
    for enough in (700_000_000, None):
        monkeypatch.setattr(memory, lambda enough=enough: enough)
        with pytest.raises(AssertionError, match="the work began"):
            export_run(tiny_run, out)


def test_fusing_leaves_the_tower_as_it_was_and_refuses_what_is_no_graph(
    tiny_backbone: Backbone,
) -> None:
    tower = read_tower(tiny_backbone)
    before = tower.SerializeToString()
    head = zero_shot_head(tiny_backbone, ("mug", "bike"))
    fused = fuse(tower, head, "tiny")
    assert tower.SerializeToString() == before
    assert [value.name for value in fused.graph.output] == ["logits", "domain_weights", "features"]
    onnx.checker.check_model(hold_weights(fused), full_check=True)
    for damage in ("MatMul", "weight"):
        broken = hold_weights(tower)
        if damage == "MatMul":
            broken.graph.node[-1].op_type = "NoSuchOperator"
        else:
            large = max(broken.graph.initializer, key=lambda tensor: len(tensor.raw_data))
            del large.dims[:]
            large.dims.extend([7, 5, 3])
        with pytest.raises(ExportError, match="found a graph that is not valid ONNX"):
            fuse(broken, head, "tiny")
