"""float32 tower -> int8 tower: Q/DQ pairs whose scales come from calibration images.

ONNX Runtime's quantiser quantises weights per channel and activations per tensor. The first
convolutions and the last projection stay in float32. They are a few per cent of the work and would
cause most of the loss (`benchmarks/precision.py` measures both).

Source: ONNX Runtime, "Quantize ONNX models"; arXiv 1806.08342 for weights per channel.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fedapt.core.errors import ExportError
from fedapt.core.files import scratch_folder
from fedapt.core.quiet import quiet
from fedapt.onnx.patches import PRODUCT
from fedapt.onnx.trace import IR_VERSION
from fedapt.onnx.weights import hold_weights

FLOAT_CONVOLUTIONS = 5
_BATCH = 8


def to_int8(
    tower: onnx.ModelProto,
    calibration: NDArray[np.uint8],
    *,
    symmetric: bool,
    reduced_range: bool = False,
    float_convolutions: int = FLOAT_CONVOLUTIONS,
) -> onnx.ModelProto:
    """A copy whose convolutions and products with weights run in int8.

    Args:
        tower: the image tower in float32.
        calibration: uint8 [n, height, width, 3], at least one image.
        symmetric: int8 activations around zero, the only kind that TensorRT accepts; else uint8,
            which CPUs multiply faster.
        reduced_range: weights in 7 bits. x86 without VNNI adds pairs of products in 16 bits, and
            8-bit weights would overflow them.
        float_convolutions: number of the first convolutions that stay in float32.

    Raises:
        ExportError: the quantiser failed.
    """
    from onnxruntime import quantization as q

    excluded = _keep_in_float(tower, float_convolutions)
    copy = hold_weights(tower)  # the quantiser removes the weights from its argument
    kind = q.QuantType.QInt8 if symmetric else q.QuantType.QUInt8
    # results of products stay float, because one multiplication by the scales follows in any case
    unquantised = ["MatMul", "Gemm"] + (["Conv"] if symmetric else [])
    # the quantiser logs advice and the excluded nodes
    with scratch_folder() as folder, quiet(logging.WARNING):
        out = folder / "int8.onnx"
        try:
            q.quantize_static(
                copy,
                out,
                _Reader(tower.graph.input[0].name, calibration),
                quant_format=q.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduced_range,
                activation_type=kind,
                weight_type=q.QuantType.QInt8,
                nodes_to_exclude=excluded,
                op_types_to_quantize=["Conv", "MatMul", "Gemm", "Add", "Clip", "Relu"],
                calibrate_method=q.CalibrationMethod.MinMax,
                extra_options={
                    "ActivationSymmetric": symmetric,
                    "OpTypesToExcludeOutputQuantization": unquantised,
                },
            )
        except Exception as error:  # the quantiser documents no error classes
            reason = " ".join(str(error).split())[:300]
            raise ExportError(
                where="precision int8",
                found=f"{type(error).__name__}: {reason}",
                expected="a graph that ONNX Runtime can quantise",
                next_step="export with `precision` fp32 or fp16, and report this with the model",
            ) from error
        model = onnx.load(out)
    model.ir_version = IR_VERSION
    return model


def _keep_in_float(tower: onnx.ModelProto, float_convolutions: int) -> list[str]:
    """Names of the first convolutions, the nodes before them, and the last projection.

    Products of two activations (the scores and sums of attention) are among them too.
    """
    nodes = tower.graph.node
    weights = {tensor.name for tensor in tower.graph.initializer}
    convolutions = [node.name for node in nodes if node.op_type == "Conv"]
    if any(node.name == PRODUCT for node in nodes):  # the patch embedding is a convolution too
        convolutions.insert(0, PRODUCT)
    excluded = convolutions[:float_convolutions]
    seen = set()
    for node in nodes:
        seen.add(node.name)
        if not convolutions or node.name == convolutions[0]:
            break
    is_convolutional = len(convolutions) > float_convolutions
    if not is_convolutional:  # the sums and activations of a transformer stay float
        excluded += [node.name for node in nodes if node.op_type in ("Add", "Clip", "Relu")]
    products = [node for node in nodes if node.op_type in ("Gemm", "MatMul")]
    excluded += [node.name for node in products if not weights.intersection(node.input)]
    return [*dict.fromkeys([*excluded, *sorted(seen), products[-1].name])]


class _Reader:
    """Batches of calibration images, for the interface of ONNX Runtime's quantiser."""

    def __init__(self, name: str, images: NDArray[np.uint8]) -> None:
        parts = range(0, len(images), _BATCH)
        self._batches: Iterator[dict[str, Any]] = iter(
            [{name: images[i : i + _BATCH]} for i in parts]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)
