"""The patch embedding of a traced ViT as one matrix product.

A convolution whose stride is its kernel reads every pixel once:

    conv(W, x)[i, j]  =  W' . x[patch i, j]         W' [p p 3, width]

One transposition replaces two, and cuDNN computes this convolution far below the speed of a matrix
product. The graph casts the pixels before it moves them: TensorRT accepts a uint8 input only if a
Cast reads it, and cannot transpose bytes.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929, equation 1.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fedapt.onnx.trace import drop_unused_weights, follow_input

PRODUCT = "patches.product"  # the product's node, which int8 keeps in float32


def multiply_patches(model: onnx.ModelProto) -> None:
    """Replace, in place, the convolution that embeds the patches; others do not change.

    Comes after `fold_normalisation`: the pixels go into the convolution as they are.
    """
    graph = model.graph
    height, width = (d.dim_value for d in graph.input[0].type.tensor_type.shape.dim[1:3])
    constants = {tensor.name: tensor for tensor in graph.initializer}
    path = follow_input(graph, ("Cast", "Transpose", "Conv", "Reshape", "Transpose"))
    if path is None or path[2].input[1] not in constants:
        return
    cast, _, conv, _, to_tokens = path
    attributes = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    weight = numpy_helper.to_array(constants[conv.input[1]])
    n_channels, patch_height, patch_width = weight.shape[1:]
    if (
        list(attributes["strides"]) != [patch_height, patch_width]
        or any(attributes.get("pads", ()))
        or set(attributes.get("dilations", [1])) != {1}
        or attributes.get("group", 1) != 1
        or height % patch_height
        or width % patch_width
        or helper.get_attribute_value(to_tokens.attribute[0]) != [0, 2, 1]
    ):
        return
    rows, columns = height // patch_height, width // patch_width
    size = patch_height * patch_width * n_channels
    shapes = {
        "patches.grid": [0, rows, patch_height, columns, patch_width, n_channels],
        "patches.flat": [0, rows * columns, size],
    }
    for name, shape in shapes.items():
        graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), name))
    product = weight.transpose(2, 3, 1, 0).reshape(size, -1)
    graph.initializer.append(numpy_helper.from_array(product, "patches.weight"))
    (tokens,) = to_tokens.output
    has_bias = len(conv.input) > 2
    unbiased = "patches.unbiased" if has_bias else tokens
    make = helper.make_node
    nodes = [
        make("Reshape", [cast.output[0], "patches.grid"], ["patches.pixels"], "patches.cut"),
        make(
            "Transpose",
            ["patches.pixels"],
            ["patches.moved"],
            "patches.move",
            perm=[0, 1, 3, 2, 4, 5],
        ),
        make("Reshape", ["patches.moved", "patches.flat"], ["patches.rows"], "patches.flatten"),
        make("MatMul", ["patches.rows", "patches.weight"], [unbiased], PRODUCT),
    ]
    if has_bias:
        nodes.append(make("Add", [unbiased, conv.input[2]], [tokens], "patches.bias"))
    place = list(graph.node).index(cast)
    for node in path[1:]:
        graph.node.remove(node)
    for offset, node in enumerate(nodes):
        graph.node.insert(place + 1 + offset, node)
    drop_unused_weights(graph)
