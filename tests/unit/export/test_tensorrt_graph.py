"""The cast of the pixels goes before what moves them, and the results stay."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fedapt_export.tensorrt_graph import cast_pixels_first


def build(moves: bool) -> onnx.ModelProto:
    """uint8 [b, 4, 4, 3] -> patches of 2 x 2 pixels as float32 [b, 4, 12], times 8."""
    nodes = [
        helper.make_node("Reshape", ["images", "grid"], ["pixels"]),
        helper.make_node("Transpose", ["pixels"], ["moved"], perm=[0, 1, 3, 2, 4, 5]),
        helper.make_node("Reshape", ["moved", "flat"], ["bytes"]),
        helper.make_node("Cast", ["bytes"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["values", "values"], ["twice"]),
        helper.make_node("Shape", ["images"], ["size"]),  # which moves nothing
        helper.make_node("Cast", ["size"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["numbers"], ["most"], keepdims=0),
        helper.make_node("Mul", ["twice", "most"], ["out"]),
    ]
    if not moves:
        nodes[:4] = [
            helper.make_node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["cast", "flat"], ["values"]),
        ]
    shapes = {"grid": [0, 2, 2, 2, 2, 3], "flat": [0, 4, 12]}
    constants = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in shapes.items()]
    graph = helper.make_graph(
        nodes,
        "patches",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["b", 4, 4, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["b", 4, 12])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def run(model: onnx.ModelProto) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    return np.asarray(session.run(None, {"images": images})[0])


@pytest.mark.parametrize("moves", [True, False])
def test_nothing_but_a_cast_takes_bytes(moves: bool) -> None:
    model = build(moves)
    expected = run(model)
    assert cast_pixels_first(model) is moves
    users = [node.op_type for node in model.graph.node if "images" in node.input]
    assert sorted(users) == ["Cast", "Shape"]
    np.testing.assert_array_equal(run(model), expected)
    assert not cast_pixels_first(model)  # once is enough
