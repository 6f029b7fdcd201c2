"""BatchNorms that follow no convolution, as one product and one sum.

    scale (x - mean) / sqrt(var + eps) + bias  =  a x + b

The trace folds a BatchNorm into the convolution before it. Without such a convolution (FastViT's
attention), the statistics would remain four tensors of an operator that has no half precision.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fedapt.onnx.trace import drop_unused_weights
from fedapt.onnx.types import infer_types


def unfold_batch_norms(model: onnx.ModelProto) -> None:
    """Replace every BatchNormalization, in place, by Mul and Add."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    types = infer_types(model)
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "BatchNormalization" or not constants.keys() >= set(node.input[1:]):
            continue
        scale, bias, mean, variance = (
            numpy_helper.to_array(constants[name]).astype(np.float64) for name in node.input[1:]
        )
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        name = node.output[0]
        rank = len(types[name].shape.dim) if name in types else 4
        shape = (-1, *[1] * (rank - 2))
        for suffix, values in (("factor", factor), ("offset", bias - mean * factor)):
            tensor = values.reshape(shape).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(tensor, f"{name}.{suffix}"))
        product = helper.make_node(
            "Mul", [node.input[0], f"{name}.factor"], [f"{name}.scaled"], f"{name}.scaled"
        )
        total = helper.make_node("Add", [f"{name}.scaled", f"{name}.offset"], [name], node.name)
        graph.node.remove(node)
        graph.node.insert(place, total)
        graph.node.insert(place, product)
    drop_unused_weights(graph)
