"""A BatchNorm as a product and a sum: the same numbers, and no operator of that name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fedapt.onnx.batch_norm import unfold_batch_norms
from fedapt_runtime.backends.ort import import_onnxruntime, open_session


@pytest.mark.parametrize("shape", [("batch", 3), ("batch", 3, 4, 5)])
def test_the_numbers_stay_and_the_operator_goes(shape: tuple[str | int, ...]) -> None:
    rng = np.random.default_rng(0)
    statistics = {
        "scale": rng.normal(size=3),
        "bias": rng.normal(size=3),
        "mean": rng.normal(size=3),
        "var": rng.uniform(0.1, 2.0, size=3),
    }
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("BatchNormalization", ["r", *statistics], ["n"], "norm", epsilon=0.25),
        helper.make_node("Neg", ["n"], ["y"]),
    ]
    values = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in statistics.items()]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = rng.normal(size=(2, *shape[1:])).astype(np.float32)
    unfold_batch_norms(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Relu", "Mul", "Add", "Neg"]
    assert {t.name for t in model.graph.initializer} == {"n.factor", "n.offset"}
    session = open_session(import_onnxruntime(), model.SerializeToString(), "cpu", "a norm")
    found = session.run(["y"], {"x": x})[0]
    per_channel = {n: v.reshape(3, *[1] * (len(shape) - 2)) for n, v in statistics.items()}
    centred = (np.maximum(x, 0) - per_channel["mean"]) / np.sqrt(per_channel["var"] + 0.25)
    expected = -(centred * per_channel["scale"] + per_channel["bias"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
