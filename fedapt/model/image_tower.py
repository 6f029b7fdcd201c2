"""The image tower behind one border: uint8 pixels in, features out; in torch and as ONNX."""

from __future__ import annotations

import copy
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from fedapt.model.backbone import Backbone
from fedapt.model.batch_norm import unfold_batch_norms
from fedapt.model.normalisation import fold_normalisation
from fedapt.model.onnx_trace import trace_to_onnx
from fedapt.model.patches import multiply_patches
from fedapt.model.traceable import rewrite_for_tracing
from fedapt_runtime import Preprocessing

INPUT, FEATURES = "images", "features"


class ImageTower(nn.Module):
    """uint8 [batch, height, width, 3] -> image features f, float32 [batch, D], not normalised.

    Normalisation happens here, as one multiplication and one addition per value, so that a quarter
    of the bytes has to reach the device.
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


def image_tower_to_onnx(backbone: Backbone, tower: nn.Module | None = None) -> onnx.ModelProto:
    """The image tower as ONNX, input `images`, output `features`.

    Args:
        tower: another in its place, from the same pixels to features of the same width.

    Raises:
        ExportError: the tower cannot be traced.
    """
    tower = copy.deepcopy(tower or image_tower(backbone)).eval()
    rewrite_for_tracing(tower)
    height, width = backbone.preprocessing.size
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8, device=backbone.device)
    model = trace_to_onnx(tower, example, INPUT, [FEATURES])
    fold_normalisation(model)
    multiply_patches(model)
    unfold_batch_norms(model)
    return model
