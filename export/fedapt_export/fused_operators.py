"""Attention, residual sum and LayerNorm of a ViT as the fused operators of ONNX Runtime.

A traced block has thirty small operators. On a GPU each of them reads and writes all activations,
which takes longer than the products between them. ONNX Runtime has one kernel for each of

    q = x Wq + bq, likewise k and v;  softmax(s q k') v     Attention (one product for q, k and v)
    softmax(s (q + bq) (k + bk)') (v + bv)                  MultiHeadAttention
    y = x + skip + bias;  LayerNorm(y)                      SkipLayerNormalization

but recognises only the graphs of a few exporters, and none with casts in between. They belong to
its own domain, `com.microsoft`: no other library runs the graph. The kernels compute softmax in
float32; LayerNorm too, with the provider option `enable_skip_layer_norm_strict_mode`.

Source: ONNX Runtime documentation, "Contrib operators".
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from fedapt.onnx.trace import drop_unused_weights, find_only_reader
from fedapt.onnx.types import copy_structure
from fedapt.onnx.weights import read_values

DOMAIN = "com.microsoft"


def fuse_operators(tower: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy of a tower with fused operators, and how many it has.

    Args:
        tower: float32 or float16, as traced; what is not recognised does not change.
    """
    model = copy_structure(tower)
    graph = model.graph
    graph.initializer.extend(tower.graph.initializer)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    rewriter = _Rewriter(graph)
    n_fused = sum(rewriter.fuse_attention(n) for n in _find(graph, "Softmax"))
    n_fused += sum(rewriter.fuse_residual(n) for n in _find(graph, "LayerNormalization"))
    rewriter.apply()
    return model, n_fused


def _find(graph: onnx.GraphProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == operator]


class _Rewriter:
    """Collects replacements of nodes; the graph changes in `apply`."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._writer = {name: node for node in graph.node for name in node.output}
        self._replaced: dict[str, list[onnx.NodeProto]] = {}  # by the name of the first output

    def fuse_attention(self, softmax: onnx.NodeProto) -> bool:
        """Replace softmax(s q k') v up to the products that make q, k and v."""
        scores = self._written_by(softmax.input[0], "Cast", "MatMul")
        mixed = self._read_by(softmax.output[0], "Cast", "MatMul")
        out = mixed and self._read_by(mixed.output[0], "Transpose")
        flat = out and self._read_by(out.output[0], "Reshape")
        scaled = scores and self._written_by(scores.input[0], "Mul")
        if mixed is None or scores is None or scaled is None or flat is None:
            return False
        heads = [self._split(name) for name in (scaled.input[0], scores.input[1], mixed.input[1])]
        scale = self._value(scaled.input[1])
        if scale is None or scale.size != 1 or None in heads:
            return False
        q, k, v = (head for head in heads if head is not None)
        if len({n_heads for _, n_heads in (q, k, v)}) > 1:
            return False
        operator, inputs = self._attention_inputs([q[0], k[0], v[0]], flat.output[0])
        self._replaced[flat.output[0]] = [
            helper.make_node(
                operator,
                inputs,
                [flat.output[0]],
                domain=DOMAIN,
                num_heads=q[1],
                scale=float(scale.item()),
            )
        ]
        return True

    def _attention_inputs(self, names: list[str], out: str) -> tuple[str, list[str]]:
        """The fused operator for the values q, k and v, and its inputs.

        Args:
            names: the values before their split into heads.
            out: the result, after which new weights are named.
        """
        sums = [found for name in names if (found := self._biased_product(name)) is not None]
        if len(sums) < 3:
            return "MultiHeadAttention", names
        products = [product for product, _ in sums]
        bias = self._add_weight(f"{out}.bias", np.concatenate([bias for _, bias in sums]))
        known = [self._value(product.input[1]) for product in products]
        weights = [weight for weight in known if weight is not None]
        if len(weights) < 3 or len({product.input[0] for product in products}) > 1:
            return "MultiHeadAttention", [*(product.output[0] for product in products), bias]
        weight = self._add_weight(f"{out}.weight", np.concatenate(weights, axis=1))
        return "Attention", [products[0].input[0], weight, bias]

    def fuse_residual(self, norm: onnx.NodeProto) -> bool:
        """Replace LayerNorm(x + skip + bias), the sum included, which later blocks read."""
        total = self._written_by(norm.input[0], "Cast", "Add")
        scale, shift = (self._value(name) for name in norm.input[1:3])
        if total is None or scale is None or shift is None or len(norm.output) > 1:
            return False
        first, second = total.input
        branch, skip = (first, second) if self._biased_product(first) else (second, first)
        added = self._biased_product(branch)
        if added is None or branch == skip or find_only_reader(self._graph, branch) is None:
            return False
        product, bias = added
        out = norm.output[0]
        if total.output[0] != norm.input[0]:  # half precision: the cast back is part of it
            cast = self._read_by(out, "Cast")
            if cast is None:
                return False
            out = cast.output[0]
        kind = bias.dtype
        inputs = [
            product.output[0],
            skip,
            self._add_weight(f"{out}.scale", scale.astype(kind)),
            self._add_weight(f"{out}.shift", shift.astype(kind)),
            self._add_weight(f"{branch}.bias", bias),
        ]
        outputs = [out, "", "", total.output[0]]
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        self._replaced[total.output[0]] = [
            helper.make_node(
                "SkipLayerNormalization", inputs, outputs, domain=DOMAIN, epsilon=epsilon
            )
        ]
        self._replaced[out] = []
        return True

    def apply(self) -> None:
        """Put the new nodes in the places of the old; remove what nobody reads any more."""
        nodes = []
        for node in self._graph.node:
            nodes.extend(self._replaced.get(node.output[0], [node]))
        read = {value.name for value in self._graph.output}
        kept = []
        for node in reversed(nodes):
            if not read.isdisjoint(node.output):
                kept.append(node)
                read.update(node.input)
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in reversed(kept)]
        del self._graph.node[:]
        self._graph.node.extend(copies)
        del self._graph.value_info[:]
        drop_unused_weights(self._graph)

    def _split(self, name: str) -> tuple[str, int] | None:
        """The value before its split into heads, and their number; None without such a split."""
        node = self._written_by(name, "Transpose", "Reshape")
        shape = None if node is None else self._value(node.input[1])
        if node is None or shape is None or len(shape) != 4:
            return None
        return node.input[0], int(shape[2])

    def _biased_product(self, name: str) -> tuple[onnx.NodeProto, NDArray[Any]] | None:
        """The matrix product and the constant bias that add up to a value, if they do."""
        total = self._written_by(name, "Add")
        for a, b in () if total is None else itertools.permutations(total.input):
            product, bias = self._written_by(a, "MatMul"), self._value(b)
            if product is not None and bias is not None:
                return product, bias
        return None

    def _written_by(self, name: str, *operators: str) -> onnx.NodeProto | None:
        """The node of the last operator behind a value; the others may stand in between."""
        node = self._writer.get(name)
        while node is not None and node.op_type in operators[:-1]:
            node = self._writer.get(node.input[0])
        return node if node is not None and node.op_type == operators[-1] else None

    def _read_by(self, name: str, *operators: str) -> onnx.NodeProto | None:
        """The same downstream, where every value has one reader."""
        node = find_only_reader(self._graph, name)
        while node is not None and node.op_type in operators[:-1]:
            node = find_only_reader(self._graph, node.output[0])
        return node if node is not None and node.op_type == operators[-1] else None

    def _value(self, name: str) -> NDArray[Any] | None:
        tensor = self._weights.get(name)
        return None if tensor is None else read_values(tensor)

    def _add_weight(self, name: str, values: NDArray[Any]) -> str:
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name
