"""Normalisation of the pixels, moved into the first convolution of a traced tower.

    conv(W, x s + t)  =  conv(W s, x) + sum(W t)          without padding
    conv(W, x s + t)  =  conv(W s, x + t / s)             with padding: its zeros stay zeros

This saves one or two passes over the largest tensor of the graph.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from fedapt.onnx.trace import drop_unused_weights, find_only_reader, follow_input


def fold_normalisation(model: onnx.ModelProto) -> None:
    """Fold, in place, x s + t on the path from the input to the first convolution.

    A tower that begins otherwise stays as it is.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    path = follow_input(graph, ("Cast", "Transpose", "Mul", "Add"))
    if path is None:
        return
    multiply, add = path[2:]
    # the convolution, or a Pad of zeros before it
    reader = find_only_reader(graph, add.output[0])
    is_padded = reader is not None and reader.op_type == "Pad"
    if reader is not None and is_padded and not _pads_zeros(reader, constants):
        return
    conv = find_only_reader(graph, reader.output[0], "Conv") if reader and is_padded else reader
    if conv is None or conv.op_type != "Conv" or conv.input[1] not in constants:
        return
    attributes = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    scale, shift = (_constant(constants, node) for node in (multiply, add))
    if scale is None or shift is None or attributes.get("group", 1) != 1:
        return
    is_padded = is_padded or any(attributes.get("pads", ()))
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        is_padded = True
    weight = numpy_helper.to_array(constants[conv.input[1]]).astype(np.float64)
    folded = weight * scale.reshape(1, -1, 1, 1)
    _replace(graph, conv, 1, folded, "normalised.weight")
    (source,) = (name for name in multiply.input if name not in constants)
    if is_padded:
        offset = (shift / scale).reshape(-1, 1, 1)
        graph.initializer.append(_to_tensor(offset, "normalised.offset"))
        del add.input[:]
        add.input.extend([source, "normalised.offset"])
        graph.node.remove(multiply)
    else:
        bias = (weight * shift.reshape(1, -1, 1, 1)).sum((1, 2, 3))
        if len(conv.input) > 2:
            bias += numpy_helper.to_array(constants[conv.input[2]]).astype(np.float64)
        else:
            conv.input.append("")
        _replace(graph, conv, 2, bias, "normalised.bias")
        conv.input[0] = source
        graph.node.remove(multiply)
        graph.node.remove(add)
    drop_unused_weights(graph)


def _constant(
    constants: dict[str, onnx.TensorProto], node: onnx.NodeProto
) -> NDArray[np.float64] | None:
    names = [name for name in node.input if name in constants]
    return numpy_helper.to_array(constants[names[0]]).astype(np.float64) if names else None


def _pads_zeros(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    modes = [a.s for a in node.attribute if a.name == "mode"]
    values = [name for name in node.input[2:3] if name]
    zero = all(
        name in constants and not numpy_helper.to_array(constants[name]).any() for name in values
    )
    return modes in ([], [b"constant"]) and zero


def _to_tensor(values: NDArray[np.float64], name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(values.astype(np.float32), name)


def _replace(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    place: int,
    values: NDArray[np.float64],
    name: str,
) -> None:
    graph.initializer.append(_to_tensor(values, name))
    node.input[place] = name
