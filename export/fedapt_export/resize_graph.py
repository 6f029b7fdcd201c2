"""Resizing and cropping as an ONNX graph: Pillow's antialiased resampling as two matrix products.

The graph has no weights and depends on no model. The runtime therefore contains one file for each
interpolation, which `python -m fedapt_export.resize_graph` writes. Each image of a batch is in the
top left corner of a canvas of the same size. The graph resamples columns, rounds to 8 bits, and
resamples rows, as Pillow does. (Pillow 13 resamples rows first if the height shrinks over twice as
much as the width.) Pillow's weights have 22 bits, and those of the graph are float32, so a pixel
may differ by 1.

Source: Pillow, src/libImaging/Resample.c (`precompute_coeffs`, `bicubic_filter` with a = -0.5,
`ImagingResampleHorizontal_8bpc`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import fedapt_runtime

INTERPOLATIONS = ("bicubic", "bilinear")
_OPSET = 17


class _Graph:
    """Nodes that are added one by one; every method returns the name of a result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, kind: str, *inputs: str | float, name: str = "", **attributes: Any) -> str:
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        output = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def constant(self, value: float | list[int]) -> str:
        dtype = np.int64 if isinstance(value, list) else np.float32
        name = f"constant_{value}".replace(" ", "")
        self.constants[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name


def build_resize_graph(interpolation: str) -> onnx.ModelProto:
    """The graph of one interpolation, a member of `INTERPOLATIONS`.

    | name | dtype and shape | meaning |
    |---|---|---|
    | `canvas` | uint8 [batch, H, W, 3] | the images |
    | `sizes` | float32 [batch, 2] | rows and columns of each image |
    | `scales` | float32 [batch, 2] | pixels of the image for one pixel of the resized image |
    | `offsets` | float32 [batch, 2] | row and column of the crop in the resized image |
    | `height`, `width` | int64 [] | size of the result |
    | `images` | uint8 [batch, height, width, 3] | the output |
    """
    graph = _Graph()
    shape = graph.add("Shape", "canvas")
    rows = _weights(graph, interpolation, 0, "height", graph.add("Gather", shape, _index(graph, 1)))
    columns = _weights(
        graph, interpolation, 1, "width", graph.add("Gather", shape, _index(graph, 2))
    )
    pixels = graph.add("Transpose", "canvas", perm=[0, 3, 1, 2])
    pixels = graph.add("Cast", pixels, to=TensorProto.FLOAT)
    one = graph.constant([1])
    # [batch, 3, H, W] x [batch, 1, W, width], then [batch, 1, height, H] x [batch, 3, H, width]
    columns = graph.add("Transpose", graph.add("Unsqueeze", columns, one), perm=[0, 1, 3, 2])
    resized = _round(graph, graph.add("MatMul", pixels, columns))
    rows = graph.add("Unsqueeze", rows, one)
    resized = _round(graph, graph.add("MatMul", rows, resized))
    resized = graph.add("Transpose", resized, perm=[0, 2, 3, 1])
    graph.add("Cast", resized, name="images", to=TensorProto.UINT8)
    pair: list[str | int | None] = ["batch", 2]
    inputs = [
        helper.make_tensor_value_info("canvas", TensorProto.UINT8, ["batch", "H", "W", 3]),
        *(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, pair)
            for name in ("sizes", "scales", "offsets")
        ),
        *(
            helper.make_tensor_value_info(name, TensorProto.INT64, [])
            for name in ("height", "width")
        ),
    ]
    size: list[str | int | None] = ["batch", "height", "width", 3]
    outputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, size)]
    made = helper.make_graph(
        graph.nodes, f"resize_{interpolation}", inputs, outputs, list(graph.constants.values())
    )
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(made, opset_imports=[opset], ir_version=8, producer_name="fedapt")
    onnx.checker.check_model(model, full_check=True)
    return model


def _index(graph: _Graph, index: int) -> str:
    name = f"index_{index}"
    graph.constants[name] = numpy_helper.from_array(np.asarray(index, np.int64), name)
    return name


def _weights(graph: _Graph, interpolation: str, axis: int, target: str, length: str) -> str:
    """Weight of each pixel of the canvas in each pixel of the result: [batch, out, in]."""
    place, one, two = _index(graph, axis), graph.constant([1]), graph.constant([1, 2])
    size, scale, offset = (
        graph.add("Gather", name, place, axis=1) for name in ("sizes", "scales", "offsets")
    )
    size, broad = (graph.add("Unsqueeze", one_of, two) for one_of in (size, scale))
    scale, offset = (graph.add("Unsqueeze", one_of, one) for one_of in (scale, offset))
    result = graph.add("Add", graph.add("Add", _count(graph, target), 0.5), offset)
    centre = graph.add("Unsqueeze", graph.add("Mul", result, scale), graph.constant([2]))
    pixel = _count(graph, length)
    distance = graph.add("Abs", graph.add("Sub", graph.add("Add", pixel, 0.5), centre))
    distance = graph.add("Div", distance, graph.add("Max", broad, 1.0))
    weight = (_cubic if interpolation == "bicubic" else _triangle)(graph, distance)
    inside = graph.add("Cast", graph.add("Less", pixel, size), to=TensorProto.FLOAT)
    weight = graph.add("Mul", weight, inside)
    total = graph.add("ReduceSum", weight, graph.constant([2]), keepdims=1)
    return graph.add("Div", weight, total)


def _count(graph: _Graph, length: str) -> str:
    """The numbers from 0 to length - 1, float32 [length]."""
    numbers = graph.add("Range", _index(graph, 0), length, _index(graph, 1))
    return graph.add("Cast", numbers, to=TensorProto.FLOAT)


def _cubic(graph: _Graph, x: str) -> str:
    # |x| < 1: (1.5 x - 2.5) x^2 + 1; |x| < 2: -0.5 (((x - 5) x + 8) x - 4)
    near = graph.add("Sub", graph.add("Mul", x, 1.5), 2.5)
    near = graph.add("Add", graph.add("Mul", graph.add("Mul", near, x), x), 1.0)
    far = graph.add("Add", graph.add("Mul", graph.add("Sub", x, 5.0), x), 8.0)
    far = graph.add("Mul", graph.add("Sub", graph.add("Mul", far, x), 4.0), -0.5)
    far = graph.add("Where", graph.add("Less", x, 2.0), far, 0.0)
    return graph.add("Where", graph.add("Less", x, 1.0), near, far)


def _triangle(graph: _Graph, x: str) -> str:
    return graph.add("Max", graph.add("Sub", 1.0, x), 0.0)


def _round(graph: _Graph, values: str) -> str:
    """Values rounded to the nearest integer from 0 to 255; halves are rounded up."""
    return graph.add("Clip", graph.add("Floor", graph.add("Add", values, 0.5)), 0.0, 255.0)


def graph_path(interpolation: str) -> Path:
    """The path of the graph in the runtime's folder."""
    return Path(fedapt_runtime.__file__).parent / f"resize_{interpolation}.onnx"


def main() -> None:
    """Write both graphs into the runtime's folder."""
    for interpolation in INTERPOLATIONS:
        path = graph_path(interpolation)
        path.write_bytes(build_resize_graph(interpolation).SerializeToString(deterministic=True))
        print(path)


if __name__ == "__main__":
    main()
