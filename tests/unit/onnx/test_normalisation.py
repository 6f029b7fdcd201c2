"""Normalisation moves into the first convolution, and no number changes by more than rounding."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fedapt.onnx.normalisation import fold_normalisation
from fedapt_runtime.backends.ort import import_onnxruntime, open_session

MEAN = np.array([0.48, 0.46, 0.41])
STD = np.array([0.27, 0.26, 0.28])
SCALE = (1 / (255 * STD)).astype(np.float32).reshape(3, 1, 1)
SHIFT = (-MEAN / STD).astype(np.float32).reshape(3, 1, 1)


def build(
    *,
    bias: bool = True,
    pad: bool = False,
    first: str = "Conv",
    scale_first: bool = False,
    more_readers: str = "",
    **convolution: Any,
) -> onnx.ModelProto:
    """uint8 [batch, 8, 8, 3] -> Cast, Transpose, Mul, Add, (Pad,) and the operator `first`."""
    rng = np.random.default_rng(0)
    group = convolution.get("group", 1)
    weights = {
        "scale": SCALE,
        "shift": SHIFT,
        "weight": rng.normal(size=(6, 3 // group, 3, 3)).astype(np.float32),
        "axes": np.array([0, 0, 1, 2, 0, 0, 2, 1], dtype=np.int64),
    }
    if bias:
        weights["bias"] = rng.normal(size=6).astype(np.float32)
    multiplied = ["scale", "chw"] if scale_first else ["chw", "scale"]
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["chw"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", multiplied, ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["normal"]),
    ]
    source = "normal"
    if pad:
        nodes.append(helper.make_node("Pad", ["normal", "axes"], ["padded"]))
        source = "padded"
    if first == "Conv":
        inputs = [source, "weight"] + (["bias"] if bias else [])
        nodes.append(helper.make_node("Conv", inputs, ["features"], **convolution))
    else:
        nodes.append(helper.make_node(first, [source], ["features"], **convolution))
    outputs = ["features"]
    if more_readers:
        nodes.append(helper.make_node("Identity", [more_readers], ["also"]))
        outputs.append("also")
    graph = helper.make_graph(
        nodes,
        "tower",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [*"nchw"]) for n in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    onnx.checker.check_model(model, full_check=True)
    session = open_session(import_onnxruntime(), model.SerializeToString(), "cpu", "a test")
    found: NDArray[np.float32] = session.run(["features"], {"images": images})[0]
    return found


def images(size: int = 8) -> NDArray[np.uint8]:
    shape = (3, size, size, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    folded = copy.deepcopy(model)
    fold_normalisation(folded)
    return folded


def assert_same_numbers(folded: onnx.ModelProto, model: onnx.ModelProto) -> None:
    expected = run(model, images())
    assert expected.std() > 0.1
    largest = np.abs(expected).max()
    np.testing.assert_allclose(run(folded, images()), expected, rtol=0, atol=1e-6 * largest)
    names = {t.name for t in folded.graph.initializer}
    assert names <= {name for node in folded.graph.node for name in node.input}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "convolution",
    [
        {},
        {"pads": [0, 0, 0, 0], "strides": [2, 2]},
        {"auto_pad": "VALID"},
        {"auto_pad": "NOTSET", "dilations": [2, 2]},
    ],
    ids=["plain", "zero pads", "valid", "dilated"],
)
def test_without_padding_neither_product_nor_sum_is_left(
    bias: bool, convolution: dict[str, Any]
) -> None:
    model = build(bias=bias, **convolution)
    folded = fold(model)
    assert kinds(folded) == {"Cast": 1, "Transpose": 1, "Conv": 1}
    assert_same_numbers(folded, model)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "convolution",
    [{"pads": [1, 1, 1, 1]}, {"pads": [0, 0, 1, 0]}, {"auto_pad": "SAME_UPPER"}],
    ids=["pads", "one side", "same"],
)
def test_with_padding_one_sum_is_left(bias: bool, convolution: dict[str, Any]) -> None:
    model = build(bias=bias, **convolution)
    folded = fold(model)
    assert kinds(folded) == {"Cast": 1, "Transpose": 1, "Add": 1, "Conv": 1}
    assert_same_numbers(folded, model)


@pytest.mark.parametrize("bias", [True, False])
def test_a_pad_before_the_convolution_is_padding(bias: bool) -> None:
    model = build(bias=bias, pad=True)
    folded = fold(model)
    assert kinds(folded) == {"Cast": 1, "Transpose": 1, "Add": 1, "Pad": 1, "Conv": 1}
    assert_same_numbers(folded, model)


def test_the_operands_of_the_product_may_be_swapped() -> None:
    """A commutative operator's constant may come first: skipped or folded, never wrong."""
    model = build(scale_first=True)
    assert_same_numbers(fold(model), model)


def test_the_folded_weights_are_those_of_the_formula() -> None:
    model = build()
    values = {t.name: numpy_helper.to_array(t) for t in fold(model).graph.initializer}
    original = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weight = original["weight"].astype(np.float64)
    expected_bias = original["bias"] + np.einsum("ocij,c->o", weight, SHIFT.ravel())
    expected_weight = np.einsum("ocij,c->ocij", weight, SCALE.ravel())
    np.testing.assert_allclose(values["normalised.weight"], expected_weight, rtol=1e-6)
    np.testing.assert_allclose(values["normalised.bias"], expected_bias, rtol=1e-6)
    assert values["normalised.weight"].dtype == values["normalised.bias"].dtype == np.float32
    assert set(values) == {"normalised.weight", "normalised.bias"}


@pytest.mark.parametrize(
    "options",
    [
        {"group": 3},
        {"first": "Relu"},
        {"first": "MaxPool", "kernel_shape": [2, 2]},
        {"more_readers": "normal"},
        {"more_readers": "scaled"},
        {"more_readers": "chw"},
        {"more_readers": "floats"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_a_tower_that_begins_otherwise_is_untouched(options: dict[str, Any]) -> None:
    model = build(**options)
    assert fold(model).SerializeToString() == model.SerializeToString()


def test_a_padding_of_the_images_own_values_gives_the_same_numbers() -> None:
    model = build(pad=True)
    pad = next(node for node in model.graph.node if node.op_type == "Pad")
    pad.attribute.append(helper.make_attribute("mode", "reflect"))
    assert_same_numbers(fold(model), model)


def test_a_padding_with_grey_gives_the_same_numbers() -> None:
    model = build(pad=True)
    pad = next(node for node in model.graph.node if node.op_type == "Pad")
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "grey"))
    pad.input.append("grey")
    assert_same_numbers(fold(model), model)


def test_shape_may_read_the_input_as_well() -> None:
    model = build()
    model.graph.node.insert(0, helper.make_node("Shape", ["images"], ["n"], start=0, end=1))
    model.graph.output.append(helper.make_tensor_value_info("n", TensorProto.INT64, [1]))
    folded = fold(model)
    assert kinds(folded) == {"Shape": 1, "Cast": 1, "Transpose": 1, "Conv": 1}
    assert_same_numbers(folded, model)
