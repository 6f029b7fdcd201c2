"""The interface between the classifier and its backends."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.head import HeadFile
from fedapt_runtime.manifest import Manifest

DEFAULT_BATCH = 32  # images of a batch if nothing sets another size


class Outputs(NamedTuple):
    """The outputs of the graph for a batch.

    Attributes:
        logits: float32 [batch, C], times exp(s): softmax gives probabilities.
        domain_weights: float32 [batch, N], sums to 1.
        features: float32 [batch, D], not normalised.
    """

    logits: NDArray[np.float32]
    domain_weights: NDArray[np.float32]
    features: NDArray[np.float32]


class Backend(Protocol):
    """A loaded fused graph. Calls of `run` from several threads are safe.

    Attributes:
        manifest: description of the model.
        name: one of `options.BACKENDS`.
        compute: one of `options.COMPUTE`: `fp32` multiplies in the types of the graph, and `bf16`
            multiplies the graph's float32 matrices in bfloat16.
        description: backend, version and device in a few words, for messages; for an automatic
            choice, also the reason.
        in_flight: number of batches to compute at the same time, each by its own caller.
        default_batch: default number of images in a batch.
        task_size: number of images that a thread decodes and classifies at a time, see `turns`; 0
            if other threads decode.
    """

    manifest: Manifest
    name: str
    compute: str
    description: str
    in_flight: int
    default_batch: int
    task_size: int

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Run the graph.

        Args:
            images: uint8 [batch, height, width, 3].
        """
        ...


@runtime_checkable
class SwappableBackend(Backend, Protocol):
    """A backend that can replace its head without loading the model again."""

    def with_head(self, head: HeadFile, where: object) -> Self:
        """The same graph with another head; this backend does not change.

        Raises:
            ModelFileError: the head is of another CLIP.
            RuntimeFailure: the device cannot replace its head.
        """
        ...
