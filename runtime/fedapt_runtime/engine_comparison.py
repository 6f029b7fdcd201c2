"""Comparison of a TensorRT engine with its ONNX model at several batch sizes.

A builder can miscompile a graph for some batch sizes only. A wrong stride changes results only if
rows differ. The engine therefore runs at its minimum, an odd, its optimum and its maximum batch
size, with repeated rows and with rows in another order. Equal images must get equal results at
every position.

Source: NVIDIA/TensorRT issues 4853 and 4813, engines that are wrong at some batch sizes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.backends.base import Backend
from fedapt_runtime.errors import ParityError
from fedapt_runtime.prediction import softmax

# maximum difference of class probabilities from ONNX Runtime, by the precision of the graph
MAX_PROBABILITY_DIFFERENCE = {
    "fp32": 1e-3,
    "fp16": 2e-2,
    "bf16": 5e-2,
    "int8": 5e-2,
    "fp16-weights": 1e-3,
}
_ODD = 3


@dataclass(frozen=True)
class EngineReport:
    """Figures of the comparison.

    Each difference is the maximum absolute difference of class probabilities over all batches.

    Attributes:
        batch_sizes: batch sizes of the runs.
        probability_difference: between the engine and ONNX Runtime.
        repeated_difference: between rows of the same image in one batch.
        permuted_difference: between a batch and the same images in another order.
        images: description of the images.
    """

    batch_sizes: tuple[int, ...]
    probability_difference: float
    repeated_difference: float
    permuted_difference: float
    images: str = "noise"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def check(self, precision: str, where: object) -> None:
        """Refuse an engine that is wrong.

        Args:
            precision: precision of the graph, which sets the limit.
            where: the engine, for messages.

        Raises:
            ParityError: a difference is above the limit or NaN.
        """
        maximum = MAX_PROBABILITY_DIFFERENCE[precision]
        for what, value in (
            ("an engine that differs from ONNX Runtime by", self.probability_difference),
            ("an engine whose results for one image differ by", self.repeated_difference),
            ("an engine whose results in another order differ by", self.permuted_difference),
        ):
            if not value <= maximum:  # NaN fails too
                raise ParityError(
                    where=where,
                    found=f"{what} {value:.2e}, batches of {str(self.batch_sizes)[1:-1]}",
                    expected=f"at most {maximum:.0e} in class probabilities",
                    next_step="report this with the model and the version of TensorRT; model.onnx"
                    " runs in ONNX Runtime",
                )


def compare_engine(
    engine: Backend,
    reference: Backend,
    images: NDArray[np.uint8],
    minimum: int,
    optimum: int,
    maximum: int,
) -> EngineReport:
    """Run an engine and its reference on the same batches.

    Args:
        engine: the engine.
        reference: the same graph in ONNX Runtime.
        images: uint8 [n, height, width, 3]; at least two, so that orders of rows differ.
        minimum, optimum, maximum: batch sizes of the engine's profile.
    """
    if len(images) < 2:
        raise AssertionError("an engine is compared on two images or more")
    sizes = tuple(sorted({minimum, min(max(_ODD, minimum), maximum), optimum, maximum}))
    expected = softmax(reference.run(images)[0])
    generator = np.random.default_rng(0)
    apart, repeated, permuted = [], [], []
    for size in sizes:
        # images repeat to fill the batch; a batch of two rows or more always repeats one
        rows = np.arange(size) % max(1, min(len(images), size - 1))
        found = softmax(engine.run(images[rows])[0])
        order = generator.permutation(size)
        moved = softmax(engine.run(images[rows[order]])[0])
        first = {int(row): i for i, row in reversed(list(enumerate(rows)))}
        twins = [first[int(row)] for row in rows]
        apart.append(_difference(found, expected[rows]))
        repeated.append(_difference(found, found[twins]))
        permuted.append(_difference(moved, found[order]))
    return EngineReport(sizes, _largest(apart), _largest(repeated), _largest(permuted))


def _largest(differences: list[float]) -> float:
    """The maximum; NaN if any value is NaN."""
    return float(np.max(differences))


def _difference(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    return float(np.abs(left - right).max())
