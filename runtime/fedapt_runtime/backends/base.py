"""What the classifier asks of a backend."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.manifest import Manifest


class Backend(Protocol):
    """A loaded fused graph.

    Attributes:
        manifest: what the model is.
        description: backend, version and device in a few words, for messages.
    """

    manifest: Manifest
    description: str

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 [batch, height, width, 3] -> logits [batch, C] and domain weights [batch, N]."""
        ...
