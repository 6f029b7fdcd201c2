"""The patch embedding becomes a product, and no number changes by more than rounding."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fedapt.onnx.patches import PRODUCT, multiply_patches
from fedapt_runtime.backends.ort import import_onnxruntime, open_session


def build(
    *,
    bias: bool = True,
    size: tuple[int, int] = (8, 12),
    perm: tuple[int, ...] = (0, 2, 1),
    reader: bool = False,
    **convolution: Any,
) -> onnx.ModelProto:
    """uint8 [batch, height, width, 3] -> tokens [batch, patches, 5] by patches of 4 x 6."""
    rng = np.random.default_rng(0)
    group = convolution.get("group", 1)
    weights = {
        "weight": rng.normal(size=(6, 3 // group, 4, 6)).astype(np.float32),
        "flat": np.array([0, 6, -1], dtype=np.int64),
    }
    if bias:
        weights["bias"] = rng.normal(size=6).astype(np.float32)
    inputs = ["chw", "weight"] + (["bias"] if bias else [])
    attributes = {"strides": [4, 6], "kernel_shape": [4, 6]} | convolution
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["chw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", inputs, ["grid"], **attributes),
        helper.make_node("Reshape", ["grid", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["tokens"], perm=perm),
    ]
    outputs = ["tokens"]
    if reader:
        nodes.append(helper.make_node("Identity", ["grid"], ["also"]))
        outputs.append("also")
    graph = helper.make_graph(
        nodes,
        "tower",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", *size, 3])],
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [*"nlcd"[: 3 + i]])
            for i, n in enumerate(outputs)
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = open_session(import_onnxruntime(), model.SerializeToString(), "cpu", "test")
    rows: NDArray[np.float32] = session.run(None, {"images": images})[0]
    return rows


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_product_gives_the_tokens_of_the_convolution(bias: bool, batch: int) -> None:
    model = build(bias=bias)
    images = np.random.default_rng(batch).integers(0, 256, (batch, 8, 12, 3), dtype=np.uint8)
    expected = run(model, images)
    multiply_patches(model)
    onnx.checker.check_model(model, full_check=True)
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators == Counter(
        {"Reshape": 2, "Transpose": 1, "Cast": 1, "MatMul": 1} | ({"Add": 1} if bias else {})
    )
    assert PRODUCT in {node.name for node in model.graph.node}
    found = run(model, images)
    assert found.shape == (batch, 4, 6)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"strides": [4, 4]},
        {"pads": [0, 0, 0, 6]},
        {"dilations": [1, 1], "group": 3},
        {"size": (9, 12)},
        {"perm": (0, 1, 2)},
        {"reader": True},
    ],
    ids=["overlap", "padding", "groups", "a rest of pixels", "no tokens", "a second reader"],
)
def test_another_convolution_stays(changes: dict[str, Any]) -> None:
    model = build(**changes)
    before = copy.deepcopy(model)
    multiply_patches(model)
    assert model == before
