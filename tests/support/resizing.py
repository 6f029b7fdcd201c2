"""What a graph that resizes must give, wherever it runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedapt_runtime import Preprocessing
from fedapt_runtime.device_resize import DeviceResizer

# height and width: larger and smaller than the model's, flat, upright, and as it is
SIZES = ((240, 320), (160, 120), (75, 100), (40, 50), (56, 56), (100, 131), (56, 90))
_TALL = ((500, 90), (640, 100))  # Pillow 13 resamples their rows first


def make_preprocessing(mode: str = "shortest", interpolation: str = "bicubic") -> Preprocessing:
    size = (56, 56) if mode == "shortest" else (50, 40)
    return Preprocessing(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), interpolation, mode)


def draw(height: int, width: int) -> NDArray[np.uint8]:
    """Noise that is smooth, as photos are."""
    generator = np.random.default_rng(height * width)
    small = generator.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    smooth = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth)


def check_resizer(resizer: DeviceResizer, preprocessing: Preprocessing) -> None:
    """Compare with Pillow, all sizes in one batch."""
    images = [draw(*size) for size in (*SIZES, *_TALL)]
    found = resizer.run(images)
    assert found.dtype == np.uint8
    assert found.shape == (len(images), *preprocessing.size, 3)
    for image, resized in zip(images, found, strict=True):
        expected = preprocessing.load(Image.fromarray(image)).astype(int)
        apart = np.abs(expected - resized)
        if image.shape[:2] in _TALL:
            assert apart.mean() < 0.4
            assert apart.max() <= 8
        else:
            assert apart.max() <= 1
            assert apart.mean() < 0.2
