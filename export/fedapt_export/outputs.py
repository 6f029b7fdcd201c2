"""Logits and features of a fused graph on many images, and how far the features of two differ."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH = 32


def run_in_batches(
    session: Any, images: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits float32 [n, C] and features float32 [n, D] of an ONNX Runtime session.

    Args:
        images: uint8 [n, height, width, 3], at least one.
    """
    parts = [
        session.run(["logits", "features"], {"images": images[i : i + BATCH]})
        for i in range(0, len(images), BATCH)
    ]
    logits, features = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return logits, features


def unit_difference(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """Largest absolute difference of unit features, both [n, D]; NaN if either array holds one."""
    return float(np.abs(_unit(left) - _unit(right)).max())


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = features / np.linalg.norm(features, axis=-1, keepdims=True)
    return unit
