"""The head of the fused graph: image features -> logits and domain weights, as ONNX nodes.

    z = Q r + q0;  r = f or f^;  z~ = (z - mean(z)) / std(z), or z;  w = softmax(z~ / tau)
    S_nc = f^ . T_nc;  logits_c = exp(s) ((w . S_.c) / sqrt(w' G_c w) + w . b_.c)

The head is built node by node and not traced, so it contains exactly these operations: three small
matrix products, whatever the number of images.

Source: `fedapt.model.head`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fedapt.model.adaptive_network import MIN_STD
from fedapt.model.backbone import Backbone
from fedapt.model.head import MIN_NORM, Head, single_bank
from fedapt.model.image_tower import FEATURES
from fedapt.model.prompted_clip import zero_shot_features
from fedapt.onnx.trace import BATCH, IR_VERSION, OPSET
from fedapt_runtime.head import complete_head

LOGITS, WEIGHTS = "logits", "domain_weights"


class _GraphBuilder:
    """Collects nodes and constants; every result has a descriptive name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[np.float32] | NDArray[np.int64]) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def scalar(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, dtype=np.float32))

    def axes(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, dtype=np.int64))

    def node(self, operator: str, output: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [output], output, **attributes))
        return output


def zero_shot_head(backbone: Backbone, class_names: tuple[str, ...]) -> Head:
    """Zero-shot CLIP as a head of one domain, so that the same code measures it."""
    return single_bank(zero_shot_features(backbone, class_names), backbone.logit_scale)


def head_tensors(head: Head) -> dict[str, NDArray[np.float32]]:
    """The head's own tensors, float32, in the layout of the products: no transposes at run time.

    `swappable_inputs` gives their shapes.
    """
    banks, network = head.banks, head.adaptive_network
    bank_bias = banks.new_zeros(banks.shape[:2]) if head.bank_bias is None else head.bank_bias
    router_bias = network.new_zeros(len(network)) if head.router_bias is None else head.router_bias
    tensors = {
        "text_banks": banks.flatten(0, 1).T,
        "bank_bias": bank_bias,
        "gram": head.gram.permute(1, 0, 2).flatten(1),
        "adaptive_network": network.T,
        "router_bias": router_bias,
    }
    numbers = {
        "router_takes_unit": head.router_takes_unit,
        "router_standardised": head.router_standardised,
        "temperature": head.temperature,
        "logit_scale": head.logit_scale,
    }
    arrays = {name: tensor.contiguous().cpu().numpy() for name, tensor in tensors.items()}
    return arrays | {name: np.array(value, dtype=np.float32) for name, value in numbers.items()}


def build_head(head: Head) -> onnx.ModelProto:
    """The head as ONNX, all float32.

    Its input is `features` [batch, D]; its outputs are `logits` [batch, classes] and
    `domain_weights` [batch, domains]. The head's tensors are initialisers. A graph that also has
    the inputs from `swappable_inputs` uses them as default values.
    """
    n_domains, n_classes, image_width = head.banks.shape
    g = _GraphBuilder()
    for name, value in complete_head(head_tensors(head), n_domains, n_classes).items():
        g.constant(name, value)
    norm = g.node("ReduceL2", "head.norm", FEATURES, g.axes("head.last", -1), keepdims=1)
    norm = g.node("Max", "head.safe_norm", norm, g.scalar("head.min_norm", MIN_NORM))
    unit = g.node("Div", "head.unit_features", FEATURES, norm)
    weights = _domain_weights(g, unit, head.mixing)

    similarity = g.node("MatMul", "head.flat", unit, "text_banks")
    similarity = g.node("Reshape", "head.similarity", similarity, "bank_shape")
    row = g.node("Unsqueeze", "head.weight_row", weights, g.axes("head.axis_1", 1))
    mixed = g.node("MatMul", "head.mixed_row", row, similarity)
    mixed = g.node("Squeeze", "head.mixed", mixed, "head.axis_1")

    partial = g.node("MatMul", "head.gram_flat", weights, "gram")
    partial = g.node("Reshape", "head.gram_partial", partial, "gram_shape")
    column = g.node("Unsqueeze", "head.weight_column", weights, g.axes("head.axis_2", 2))
    squared = g.node("MatMul", "head.squared_column", partial, column)
    squared = g.node("Squeeze", "head.squared", squared, "head.axis_2")
    squared = g.node("Max", "head.safe_squared", squared, "head.min_norm")
    length = g.node("Sqrt", "head.length", squared)

    cosine = g.node("Div", "head.cosine", mixed, length)
    shift = g.node("MatMul", "head.mixed_bias", weights, "bank_bias")
    g.node("Mul", LOGITS, g.node("Add", "head.shifted", cosine, shift), "logit_scale")

    graph = helper.make_graph(
        g.nodes,
        "fedapt_head",
        [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, [BATCH, image_width])],
        [
            helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [BATCH, "classes"]),
            helper.make_tensor_value_info(WEIGHTS, TensorProto.FLOAT, [BATCH, "domains"]),
        ],
        initializer=g.constants,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def _domain_weights(g: _GraphBuilder, unit: str, mixing: str) -> str:
    read = _choose(g, "router_takes_unit", unit, FEATURES)
    scores = g.node("MatMul", "head.products", read, "adaptive_network")
    scores = g.node("Add", "head.scores", scores, "router_bias")
    axis = g.axes("head.domain_axis", -1)
    mean = g.node("ReduceMean", "head.mean_score", scores, axis, keepdims=1)
    centred = g.node("Sub", "head.centred", scores, mean)
    total = g.node("ReduceSumSquare", "head.spread", centred, axis, keepdims=1)
    variance = g.node("Div", "head.variance", total, "other_domains")
    std = g.node("Sqrt", "head.std", variance)
    # one domain, or equal scores: 0 / MIN_STD = 0, and softmax gives uniform weights
    std = g.node("Max", "head.safe_std", std, g.scalar("head.min_std", MIN_STD))
    # subtracting the mean from the scores does not change their softmax
    std = _choose(g, "router_standardised", std, g.scalar("head.one", 1.0))
    standard = g.node("Div", "head.standard_scores", centred, std)
    sharp = g.node("Div", "head.sharp_scores", standard, "temperature")
    return g.node("Hardmax" if mixing == "hard" else "Softmax", WEIGHTS, sharp, axis=-1)


def _choose(g: _GraphBuilder, switch: str, one: str, zero: str) -> str:
    """`one` if the head's switch is 1, `zero` if it is 0; the value itself is not rounded."""
    on = g.node("Cast", f"head.{switch}", switch, to=TensorProto.BOOL)
    return g.node("Where", f"head.{switch}.chosen", on, one, zero)


def swappable_inputs(image_width: int) -> list[onnx.ValueInfoProto]:
    """The head's tensors as graph inputs; only D, the width of the features, is fixed."""
    shapes: dict[str, tuple[int, list[int | str]]] = {
        "text_banks": (TensorProto.FLOAT, [image_width, "domains_times_classes"]),
        "bank_bias": (TensorProto.FLOAT, ["domains", "classes"]),
        "gram": (TensorProto.FLOAT, ["domains", "classes_times_domains"]),
        "adaptive_network": (TensorProto.FLOAT, [image_width, "domains"]),
        "router_bias": (TensorProto.FLOAT, ["domains"]),
        "router_takes_unit": (TensorProto.FLOAT, []),
        "router_standardised": (TensorProto.FLOAT, []),
        "temperature": (TensorProto.FLOAT, []),
        "logit_scale": (TensorProto.FLOAT, []),
        "bank_shape": (TensorProto.INT64, [3]),
        "gram_shape": (TensorProto.INT64, [3]),
        "other_domains": (TensorProto.FLOAT, []),
    }
    return [helper.make_tensor_value_info(n, kind, dims) for n, (kind, dims) in shapes.items()]
