"""Linear probe by FedAvg: softmax regression on frozen unit image features.

    logits = exp(s) f^ . W + b;   W and b start at 0

Source: FedAvg (arXiv 1602.05629) on the linear probe of CLIP (arXiv 2103.00020).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedapt.model.head import single_bank
from fedapt.training.methods.base import (
    ALL_DOMAINS,
    FeatureMethod,
    Fusable,
    Learned,
    text_logits,
)


class LinearProbe(FeatureMethod):
    """Learned: W float32 [C, D], b float32 [C]."""

    title = "linear probe"
    source = "arXiv 1602.05629"

    def begin(self) -> Learned:
        """Zeros."""
        s = self.setting
        n_classes, device = len(s.class_names), s.backbone.device
        return {
            "weight": torch.zeros(n_classes, s.backbone.joint_width, device=device),
            "bias": torch.zeros(n_classes, device=device),
        }

    def logits(self, learned: Learned, features: Tensor) -> Tensor:
        """The probe's logits, float32 [n, C]."""
        return text_logits(self.setting, features, learned["weight"]) + learned["bias"]

    def fuse(self, learned: Learned, keys: tuple[str, ...], client: int | None = None) -> Fusable:
        """One bank of vectors without unit length; the head adds b before the logit scale."""
        scale = self.setting.backbone.logit_scale
        head = single_bank(learned["weight"], scale, learned["bias"] / scale, renormalised=False)
        return Fusable(head, ALL_DOMAINS, lambda features: self.logits(learned, features))
