"""The image tower as one torch module: uint8 pixels in, features out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedapt.model.backbone import Backbone
from fedapt_runtime import Preprocessing

INPUT, FEATURES = "images", "features"


class ImageTower(nn.Module):
    """uint8 [batch, height, width, 3] -> image features f, float32 [batch, D], not normalised.

    Normalisation is one multiplication and one addition per value on the device, so only a quarter
    of the bytes is sent there.
    """

    def __init__(self, clip: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.clip = clip
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
        std = torch.tensor(preprocessing.std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std)).float().view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).float().view(3, 1, 1), persistent=False)

    scale: Tensor
    shift: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Normalise and encode; see the class."""
        pixels = images.float().permute(0, 3, 1, 2)
        clip: Any = self.clip
        features: Tensor = clip.encode_image(pixels * self.scale + self.shift)
        return features


def image_tower(backbone: Backbone) -> ImageTower:
    """The backbone's image tower, on its device."""
    return ImageTower(backbone.clip, backbone.preprocessing).to(backbone.device).eval()
