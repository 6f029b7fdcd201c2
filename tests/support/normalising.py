"""The normalisation that an exported graph contains, in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.preprocess import Preprocessing


def normalise(preprocessing: Preprocessing, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [..., height, width, 3] -> float32, as torchvision's ToTensor and Normalize."""
    scaled = images.astype(np.float32) / np.float32(255)
    mean, std = (np.asarray(v, np.float32) for v in (preprocessing.mean, preprocessing.std))
    return np.asarray((scaled - mean) / std, np.float32)
