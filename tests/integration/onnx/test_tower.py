"""The passes on towers that were traced."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from fedapt.core.errors import ExportError
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.onnx.normalisation import fold_normalisation
from fedapt.onnx.tower import image_tower_to_onnx, read_tower
from fedapt_runtime.backends.ort import import_onnxruntime, open_session


def kinds(model: onnx.ModelProto) -> Counter[str]:
    """How many operators of each kind."""
    return Counter(node.op_type for node in model.graph.node)


def run(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    onnx.checker.check_model(model, full_check=True)
    session = open_session(import_onnxruntime(), model.SerializeToString(), "cpu", "a test")
    found: NDArray[np.float32] = session.run(["features"], {"images": images})[0]
    return found


def trace(backbone: Backbone) -> tuple[onnx.ModelProto, onnx.ModelProto, onnx.ModelProto]:
    """The tower as it was traced, with its normalisation folded, and with all passes."""
    kept: list[onnx.ModelProto] = []

    def keep_and_fold(model: onnx.ModelProto) -> None:
        kept.append(copy.deepcopy(model))
        fold_normalisation(model)
        kept.append(copy.deepcopy(model))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedapt.onnx.tower.fold_normalisation", keep_and_fold)
        done = image_tower_to_onnx(backbone)
    plain, folded = kept
    return plain, folded, done


def test_a_vit_loses_its_normalisation_and_its_convolution(tiny_backbone: Backbone) -> None:
    """Patches do not overlap and have no padding: both operators go."""
    plain, folded, done = trace(tiny_backbone)
    before, after = kinds(plain), kinds(folded)
    assert {k: before[k] - after[k] for k in before if before[k] != after[k]} == {
        "Mul": 1,
        "Add": 1,
    }
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    expected, found = (run(model, images) for model in (plain, folded))
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * largest)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * largest
    assert "Conv" in after
    assert "Conv" not in kinds(done)


def test_lite_keeps_one_sum() -> None:
    """Its first convolution has padding."""
    graph = read_tower(load_backbone("lite")).graph
    operators = [node.op_type for node in graph.node if node.op_type != "Shape"]
    assert operators[: operators.index("Conv")] in (
        ["Cast", "Transpose", "Add"],
        ["Cast", "Transpose", "Add", "Pad"],
    )


def test_too_little_memory_is_said_before_the_trace(
    tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(backbone: Backbone) -> onnx.ModelProto:
        raise AssertionError("the trace began")

    monkeypatch.setenv("FEDAPT_CACHE", str(tmp_path))
    monkeypatch.setattr("fedapt.onnx.tower.image_tower_to_onnx", fail)
    monkeypatch.setattr("fedapt.onnx.memory.usable_memory", lambda: 600_000_000)
    with pytest.raises(ExportError, match=r"0\.6 GB of memory; .* to trace its image"):
        read_tower(tiny_backbone)
    monkeypatch.setattr("fedapt.onnx.memory.usable_memory", lambda: None)
    with pytest.raises(AssertionError, match="the trace began"):
        read_tower(tiny_backbone)
