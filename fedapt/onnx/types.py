"""Graphs without their large weights: checks and shape inference copy whole models."""

from __future__ import annotations

import onnx

_MAX_KEPT_BYTES = 1024  # of a tensor; constants that decide shapes are smaller


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with inputs in place of large weights."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = light.graph
    graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    given = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) <= _MAX_KEPT_BYTES:
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


def infer_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Element type and shape of every value that a node computes, of inputs and large weights.

    Source: ONNX, `onnx.shape_inference.infer_shapes`.
    """
    graph = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: value.type.tensor_type for value in values}
