"""The number of labels that change when a backend multiplies float32 matrices in bfloat16.

`Classifier.load(compute="bf16")` requests such products from a backend, for the same file. This
module emulates them, with the same result on every machine. It rounds the outputs of the tower's
operators and the weights of products to bfloat16, and computes sums in float32. Backends round at
most these values. The head stays in float32, as in the runtime.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fedapt.model.head import Head
from fedapt.onnx.types import copy_structure, count_weight_bytes, infer_types
from fedapt.onnx.weights import open_model, read_values
from fedapt_export.fuse import fuse
from fedapt_export.outputs import run_in_batches, unit_difference
from fedapt_runtime.agreement import Agreement

MAX_BYTES = 1_000_000_000  # of weights; the emulation takes several times their memory


@dataclass(frozen=True)
class ComputeReport:
    """Comparison of products in a lower precision with float32, on the same images.

    Attributes:
        images: number of compared images.
        changed: number of images whose label differs.
        feature_difference: maximum absolute difference of unit features.
    """

    images: int
    changed: int
    feature_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def agreement(self) -> Agreement:
        """The part of this report that the runtime reads from the manifest."""
        return Agreement(self.images, self.changed)


def is_emulated(tower: onnx.ModelProto) -> bool:
    """Whether the tower is small enough to emulate its products."""
    return count_weight_bytes(tower) <= MAX_BYTES


def emulate_bfloat16_products(tower: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 copy of a tower, with weights and intermediate values rounded to bfloat16."""
    copy = copy_structure(tower)
    graph = copy.graph
    types = infer_types(tower).items()
    floats = {name for name, kind in types if kind.elem_type == TensorProto.FLOAT}
    for tensor in tower.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            rounded = read_values(tensor).astype(ml_dtypes.bfloat16).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(rounded, tensor.name))
        else:
            graph.initializer.append(tensor)
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name not in floats:
                continue
            exact, half = f"{name}.exact", f"{name}.bfloat16"
            node.output[i] = exact
            nodes.append(helper.make_node("Cast", [exact], [half], to=TensorProto.BFLOAT16))
            nodes.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]
    return copy


def compare_bfloat16_products(
    reference: onnx.ModelProto, emulated: onnx.ModelProto, head: Head, images: NDArray[np.uint8]
) -> ComputeReport:
    """Run both graphs on the same images.

    Args:
        reference: the fused float32 graph of the tower and `head`.
        emulated: the tower from `emulate_bfloat16_products`.
        head: the head of both graphs.
        images: uint8 [n, height, width, 3], at least one.
    """

    def run(graph: onnx.ModelProto) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return run_in_batches(open_model(graph, "cpu", "the graph"), images)

    logits, features = run(fuse(emulated, head, "bf16 products"))
    known_logits, known_features = run(reference)
    return ComputeReport(
        images=len(images),
        changed=int((logits.argmax(-1) != known_logits.argmax(-1)).sum()),
        feature_difference=unit_difference(features, known_features),
    )
