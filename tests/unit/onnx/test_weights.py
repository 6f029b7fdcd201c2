"""Weights in a file beside a graph: written, mapped, and run where they are."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fedapt.onnx.weights import (
    hold_weights,
    load_with_weights,
    map_weights,
    open_model,
    read_values,
    save_with_weights,
)

WEIGHT = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)  # 4 800 bytes
SMALL = np.arange(30, dtype=np.float32)


def make_model(weight: NDArray[np.generic] = WEIGHT) -> onnx.ModelProto:
    """y = x W + b."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Add", ["product", "b"], ["y"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 30])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(SMALL, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_large_weights_are_mapped_and_small_ones_stay(tmp_path: Path) -> None:
    mapped = map_weights(make_model(), tmp_path / "model.onnx")
    weight, bias = mapped.graph.initializer
    assert weight.data_location == TensorProto.EXTERNAL
    assert not weight.raw_data
    values = read_values(weight)
    assert isinstance(values, np.memmap)
    assert not values.flags.writeable
    np.testing.assert_array_equal(values, WEIGHT)
    assert not bias.external_data
    np.testing.assert_array_equal(read_values(bias), SMALL)
    assert mapped.ByteSize() < WEIGHT.nbytes / 2
    assert (tmp_path / "model.onnx.data").read_bytes() == WEIGHT.tobytes()


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_every_type_keeps_its_bits(tmp_path: Path, kind: type) -> None:
    weight = WEIGHT.astype(kind)
    mapped = map_weights(make_model(weight), tmp_path / "model.onnx")
    found = read_values(mapped.graph.initializer[0])
    assert found.dtype == weight.dtype
    assert found.tobytes() == weight.tobytes()


def test_the_graph_runs_where_its_weights_are(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    mapped = map_weights(make_model(), tmp_path / "model.onnx")
    (found,) = open_model(mapped, "cpu", "a test").run(["y"], {"x": x})
    (expected,) = open_model(make_model(), "cpu", "a test").run(["y"], {"x": x})
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, x @ WEIGHT + SMALL, rtol=1e-4, atol=1e-4)


def test_held_weights_need_no_file(tmp_path: Path) -> None:
    mapped = map_weights(make_model(), tmp_path / "model.onnx")
    held = hold_weights(mapped)
    (tmp_path / "model.onnx.data").unlink()
    assert held.graph.initializer == make_model().graph.initializer
    with pytest.raises(OSError, match="No such file"):
        read_values(mapped.graph.initializer[0])


def test_mapped_weights_are_moved_on(tmp_path: Path) -> None:
    """A mapped graph is saved elsewhere without the first file."""
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    save_with_weights(map_weights(make_model(), first), second)
    first.unlink()
    (tmp_path / "first.onnx.data").unlink()
    found = load_with_weights(second)
    np.testing.assert_array_equal(read_values(found.graph.initializer[0]), WEIGHT)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    save_with_weights(make_model(), path)
    data = tmp_path / "model.onnx.data"
    load_with_weights(path)
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.onnx\.data ends before w"):
        load_with_weights(path)
