"""Copies of graphs without their weights, and the types of their values.

Protobuf serialises a message to copy it, so a copy of a whole model takes several times its memory.
Checks and shape inference also copy whole models.
"""

from __future__ import annotations

import math

import onnx

_MAX_KEPT_BYTES = 1024  # of a tensor; constants that decide shapes are smaller


def copy_structure(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of everything except initialisers and metadata."""
    copy = onnx.ModelProto(
        ir_version=model.ir_version,
        opset_import=model.opset_import,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
    )
    copy.graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(copy.graph, field).extend(getattr(model.graph, field))
    return copy


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with inputs in place of large weights."""
    light = copy_structure(model)
    graph = light.graph
    given = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if is_small(tensor):
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


def is_small(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor is copied with its graph, like constants that decide shapes."""
    return count_bytes(tensor) <= _MAX_KEPT_BYTES


def count_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's values. Its `raw_data` would be copied to take their length."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    size: int = math.prod(tensor.dims) * kind.itemsize
    return size


def count_weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all weights, without `ModelProto.ByteSize`, which serialises the model."""
    return sum(count_bytes(tensor) for tensor in model.graph.initializer)


def infer_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Element type and shape of every value that a node computes, of inputs and large weights.

    Source: ONNX, `onnx.shape_inference.infer_shapes`.
    """
    graph = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: value.type.tensor_type for value in values}
