"""float32 tower -> float16 or bfloat16 tower; parts that must stay exact remain in float32.

The graph's own types hold the precision, not a builder's flag: TensorRT 10, 11 and RTX follow the
types of a strongly typed network, and ONNX Runtime has no such flag. LayerNorm, softmax and all
sums over an axis stay in float32 (CLIP's squares overflow float16), and so do the pixels until the
first product. Weights and products take half the memory.

Source: NVIDIA TensorRT documentation, "Strongly typed networks".
"""

from __future__ import annotations

from collections.abc import Iterable

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fedapt.core.errors import ExportError
from fedapt.onnx.trace import OPSET
from fedapt.onnx.types import copy_structure, infer_types, is_small
from fedapt.onnx.weights import read_values

_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_NUMPY = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
_MOST = {"fp16": 65504.0, "bf16": 3.39e38}
_OPSETS = {"fp16": OPSET, "bf16": 22}  # convolutions take bfloat16 from 22 on
# operators that normalise or sum: their results depend on the range of their inputs
_EXACT = {
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Pow",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "Softmax",
    "Sqrt",
}
# a norm that was traced as several operators: these, and the arithmetic after them
_PIECES = {"Pow", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Sqrt"}
_ARITHMETIC = {"Add", "Div", "Max", "Mul", "Reciprocal", "Sub"}
_FIRST_PRODUCTS = {"Conv", "MatMul", "Gemm"}


def to_half(tower: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """A copy in half precision; inputs and outputs keep their types.

    Args:
        tower: float32, of which only one domain's operators are used.
        precision: `fp16` or `bf16`.

    Raises:
        ExportError: a weight is beyond float16's range.
    """
    model = copy_structure(tower)
    graph = model.graph
    converter = _Converter(tower, precision)
    nodes = converter.convert(graph.node, {value.name for value in graph.output})
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(converter.weights())
    del graph.value_info[:]
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = _OPSETS[precision]
    return model


class _Converter:
    """Rewrites nodes one by one; tracks the types of every value."""

    def __init__(self, tower: onnx.ModelProto, precision: str) -> None:
        self._half, self._precision = _TYPES[precision], precision
        types = infer_types(tower).items()
        self._floats = {name for name, kind in types if kind.elem_type == TensorProto.FLOAT}
        self._weights = {tensor.name: tensor for tensor in tower.graph.initializer}
        self._floats |= {n for n, t in self._weights.items() if t.data_type == TensorProto.FLOAT}
        self._wanted: dict[tuple[str, int], str] = {}
        self._nodes: list[onnx.NodeProto] = []

    def convert(self, nodes: Iterable[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
        """All nodes in their target types, with the casts between them."""
        has_product, pieces = False, set[str]()
        self._types = {name: int(TensorProto.FLOAT) for name in self._floats}
        for original in nodes:
            node = onnx.NodeProto()
            node.CopyFrom(original)
            has_product |= node.op_type in _FIRST_PRODUCTS
            is_piece = node.op_type in _PIECES or (
                node.op_type in _ARITHMETIC and not pieces.isdisjoint(node.input)
            )
            if is_piece:
                pieces.update(node.output)
            is_half = has_product and node.op_type not in _EXACT and not is_piece
            wanted = self._half if is_half else int(TensorProto.FLOAT)
            for i, name in enumerate(node.input):
                if name in self._floats:
                    node.input[i] = self._as(name, wanted)
            renamed = []
            for i, name in enumerate(node.output):
                if name not in self._floats:
                    continue
                if is_half and name in outputs:  # readers of the tower expect float32
                    node.output[i] = f"{name}.{self._precision}"
                    renamed.append((node.output[i], name))
                self._types[name] = wanted
            self._nodes.append(node)
            for half, name in renamed:
                self._nodes.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
                self._wanted[name, self._half] = half
                self._types[name] = int(TensorProto.FLOAT)
        return self._nodes

    def weights(self) -> list[onnx.TensorProto]:
        """Weights in the types in which nodes read them."""
        read = {name for node in self._nodes for name in node.input}
        return [tensor for name, tensor in self._weights.items() if name in read]

    def _as(self, name: str, wanted: int) -> str:
        if self._types[name] == wanted:
            return name
        if (name, wanted) in self._wanted:
            return self._wanted[name, wanted]
        suffix = self._precision if wanted == self._half else "fp32"
        converted = f"{name}.{suffix}"
        if name in self._weights:
            self._weights[converted] = _shrink(self._weights[name], converted, self._precision)
        else:
            self._nodes.append(helper.make_node("Cast", [name], [converted], to=wanted))
        self._wanted[name, wanted] = converted
        return converted


def _shrink(tensor: onnx.TensorProto, name: str, precision: str) -> onnx.TensorProto:
    """A weight in half precision, under another name."""
    values = read_values(tensor)
    with np.errstate(over="ignore"):
        shrunk = values.astype(_NUMPY[precision])
    if not np.isfinite(shrunk.astype(np.float32)).all():
        raise ExportError(
            where="precision",
            found=f"weights of up to {np.abs(values).max():.3g} in {tensor.name}",
            expected=f"at most {_MOST[precision]:.3g}, the largest {precision}",
            next_step="export with `precision` bf16 or fp32",
        )
    return helper.make_tensor(name, _TYPES[precision], tensor.dims, shrunk.tobytes(), raw=True)


def store_in_half(tower: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large weights are stored in float16; all products are in float32.

    Backends cast the weights once, when they load the model.

    Raises:
        ExportError: a weight is beyond float16's range.
    """
    model = copy_structure(tower)
    graph = model.graph
    casts = []
    for tensor in tower.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or is_small(tensor):
            graph.initializer.append(tensor)
            continue
        stored = f"{tensor.name}.fp16"
        graph.initializer.append(_shrink(tensor, stored, "fp16"))
        casts.append(helper.make_node("Cast", [stored], [tensor.name], to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend([*casts, *tower.graph.node])
    return model


def emulate_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same numbers in float32 operators: every bfloat16 value is rounded, and kept as float32.

    For machines whose ONNX Runtime has no bfloat16 operators. The results are those of hardware
    that sums in float32.
    """
    copy = copy_structure(model)
    graph = copy.graph
    types = infer_types(model).items()
    rounded = {name for name, kind in types if kind.elem_type == TensorProto.BFLOAT16}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            values = read_values(tensor).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(values, tensor.name))
        else:
            graph.initializer.append(tensor)
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name not in rounded:
                continue
            node.output[i] = f"{name}.exact"
            if node.op_type == "Cast":
                node.attribute[0].i = TensorProto.FLOAT
            nodes.append(
                helper.make_node(
                    "Cast", [node.output[i]], [f"{name}.rounded"], to=TensorProto.BFLOAT16
                )
            )
            nodes.append(
                helper.make_node("Cast", [f"{name}.rounded"], [name], to=TensorProto.FLOAT)
            )
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]
    return copy
