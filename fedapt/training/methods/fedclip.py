"""FedCLIP: an adapter on the image feature, averaged; the text features stay fixed.

    g = softmax(W2 tanh(W1 f + b1) + b2);   logits = exp(s) normalise(g * f) . t("a photo of a ...")

The gate g starts nearly equal in all dimensions, so the first model is nearly zero-shot CLIP.

The paper trains with Adam at 5e-5. Here the run's optimiser trains it, as for every method.

Source: FedCLIP (arXiv 2302.13485), attention-based adapter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fedapt.core.seeds import child_seed
from fedapt.model.head import single_bank
from fedapt.model.image_tower import image_tower
from fedapt.training.methods.base import (
    ALL_DOMAINS,
    FeatureMethod,
    Fusable,
    Learned,
    text_logits,
)


class FedCLIP(FeatureMethod):
    """Learned: W1, W2 float32 [D, D], b1, b2 float32 [D]."""

    title = "FedCLIP"
    source = "arXiv 2302.13485"

    def begin(self) -> Learned:
        """As torch's Linear starts."""
        s = self.setting
        generator = torch.Generator().manual_seed(
            child_seed(s.config.train.seed, "fedclip adapter")
        )
        width = s.backbone.joint_width
        layers = draw_linear("adapter.0", width, width, generator) | draw_linear(
            "adapter.1", width, width, generator
        )
        return {name: tensor.to(s.backbone.device) for name, tensor in layers.items()}

    def logits(self, learned: Learned, features: Tensor) -> Tensor:
        """Logits of gated features, float32 [n, C]."""
        return text_logits(self.setting, gate_features(learned, features), self.setting.zero_shot)

    def fuse(self, learned: Learned, keys: tuple[str, ...], client: int | None = None) -> Fusable:
        """The gate is part of the tower, whose output is gated features."""
        s = self.setting
        return Fusable(
            single_bank(s.zero_shot, s.backbone.logit_scale),
            ALL_DOMAINS,
            lambda gated: text_logits(s, gated, s.zero_shot),
            GatedTower(image_tower(s.backbone), learned),
        )


class GatedTower(nn.Module):
    """An image tower with the gate behind it."""

    def __init__(self, tower: nn.Module, learned: Learned) -> None:
        super().__init__()
        self.tower = tower
        self._names = {name: name.replace(".", "_") for name in learned}
        for name, tensor in learned.items():
            self.register_buffer(self._names[name], tensor.clone(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [n, height, width, 3] -> gated features float32 [n, D]."""
        learned = {name: self.get_buffer(buffer) for name, buffer in self._names.items()}
        return gate_features(learned, self.tower(images))


def gate_features(learned: Learned, features: Tensor) -> Tensor:
    """softmax(W2 tanh(W1 f + b1) + b2) f, float32 [n, D]."""
    hidden = linear(features, learned["adapter.0.weight"], learned["adapter.0.bias"]).tanh()
    gate = linear(hidden, learned["adapter.1.weight"], learned["adapter.1.bias"]).softmax(-1)
    return gate * features


def draw_linear(name: str, n_in: int, n_out: int, generator: torch.Generator) -> Learned:
    """Weight [out, in] and bias [out] as torch's Linear starts: uniform(+-1/sqrt(in))."""
    bound = 1 / math.sqrt(n_in)
    return {
        f"{name}.weight": bound * (2 * torch.rand(n_out, n_in, generator=generator) - 1),
        f"{name}.bias": bound * (2 * torch.rand(n_out, generator=generator) - 1),
    }
