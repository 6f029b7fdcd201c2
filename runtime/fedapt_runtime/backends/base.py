"""What the classifier asks of a backend."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.head import HeadFile
from fedapt_runtime.manifest import Manifest

DEFAULT_BATCH = 32  # images of a batch where nothing speaks for another size
COMPUTE = ("fp32", "bf16")


class Outputs(NamedTuple):
    """What the graph says of a batch.

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
        manifest: what the model is.
        name: one of `choose.BACKENDS`.
        compute: one of `COMPUTE`: `fp32` multiplies in the types of the graph, `bf16` multiplies
            in bfloat16 what the graph has in float32.
        description: backend, version and device in a few words, for messages; where something was
            chosen automatically, also why.
        in_flight: how many batches should be computed at once, each by a caller of its own.
        default_batch: images of a batch where nothing else is asked for.
    """

    manifest: Manifest
    name: str
    compute: str
    description: str
    in_flight: int
    default_batch: int

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """uint8 [batch, height, width, 3] -> what the graph says of them."""
        ...


@runtime_checkable
class SwappableBackend(Backend, Protocol):
    """A backend that takes another head without loading the model again."""

    def with_head(self, head: HeadFile, where: object) -> Self:
        """The same graph with another head; this one stays as it is.

        Raises:
            ModelFileError: a head of another CLIP.
            RuntimeFailure: the device keeps the head that it was loaded with.
        """
        ...
