"""Strongly augmented views of images, and their features from the same cache.

A view depends only on the image's pixels and the view's number, so its feature can be cached like
any other. The augmentation is that of the authors' unsupervised setting: flip; colour jitter (.8,
.8, .8, .2) with probability .8; grey, p .2; blur, p .2.

Source: FedAPT (arXiv 2211.07864); the recipe is SimCLR's (arXiv 2002.05709) without the crop.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from fedapt.core.report import Reporter
from fedapt.data.domains import ImageSet, ImageTable
from fedapt.data.features import ImageEncoder, extract_features
from fedapt_runtime import Preprocessing
from fedapt_runtime.machine import decode_threads

_FLIP, _JITTER, _GREY, _BLUR = 0.5, 0.8, 0.2, 0.2
_STRENGTH, _HUE = 0.8, 0.2
_MIN_SIGMA, _MAX_SIGMA = 0.1, 2.0
_VERSION = 1  # raise when a view of the same number becomes another image


@dataclass(frozen=True)
class StrongView(Preprocessing):
    """OpenCLIP's preprocessing, then an augmentation drawn from the pixels and `view`."""

    view: int = 0

    def image_to_array(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize, crop, convert and augment: uint8 [height, width, 3], RGB."""
        return augment(super().image_to_array(image), self.view)

    def to_dict(self) -> dict[str, Any]:
        """Values that determine the pixels."""
        return super().to_dict() | {"strong view": _VERSION}


def augment(pixels: NDArray[np.uint8], view: int) -> NDArray[np.uint8]:
    """One strong view of uint8 [height, width, 3]; equal pixels and number give equal views."""
    digest = hashlib.sha256(pixels.tobytes() + view.to_bytes(8, "little")).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    image = Image.fromarray(pixels)
    if rng.random() < _FLIP:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < _JITTER:
        image = _jitter(image, rng)
    if rng.random() < _GREY:
        image = image.convert("L").convert("RGB")
    if rng.random() < _BLUR:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(_MIN_SIGMA, _MAX_SIGMA)))
    return np.asarray(image)


def _jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation and hue, in a random order, as torchvision draws them."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for which in rng.permutation(4):
        if which < 3:
            factor = rng.uniform(1 - _STRENGTH, 1 + _STRENGTH)
            image = enhancers[which](image).enhance(factor)
        else:
            turn = round(255 * rng.uniform(-_HUE, _HUE))
            hue, saturation, value = image.convert("HSV").split()
            hue = hue.point([(level + turn) % 256 for level in range(256)])
            image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return image


class StrongViews:
    """Features of strong views of rows of a table, computed on first use."""

    def __init__(
        self,
        table: ImageTable,
        rows: Tensor,
        encoder: Callable[[], ImageEncoder],
        reporter: Reporter,
    ) -> None:
        self._table, self._rows = table, rows.sort().values
        self._encoder, self._reporter = encoder, reporter
        self._features: dict[int, Tensor] = {}
        self._lock = threading.Lock()  # clients ask from several threads

    def __call__(self, images: ImageSet, view: int) -> Tensor:
        """Features float32 [n, D] of one view of these images."""
        with self._lock:
            if view not in self._features:
                self._features[view] = self._extract(view)
        return self._features[view][torch.searchsorted(self._rows, images.rows)]

    def _extract(self, view: int) -> Tensor:
        encoder = _ViewEncoder(self._encoder(), view)
        found = extract_features(
            [self._table.paths[row] for row in self._rows.tolist()],
            encoder,
            workers=decode_threads(),
            task=f"features of view {view + 1}",
            reporter=self._reporter,
        )
        if found.errors:  # the file was readable when its own feature was computed
            raise found.errors[0]
        return torch.from_numpy(found.values).to(self._rows.device)


class _ViewEncoder:
    """An image encoder that sees strong views."""

    def __init__(self, encoder: ImageEncoder, view: int) -> None:
        self.preprocessing: Preprocessing = StrongView(**vars(encoder.preprocessing), view=view)
        self.fingerprint, self.width = encoder.fingerprint, encoder.width
        self.prepare, self.encode = encoder.prepare, encoder.encode
