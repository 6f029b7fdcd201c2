"""Linear probe by FedAvg: softmax regression on frozen unit image features.

    logits = exp(s) f^ . W + b;   W and b start at 0

Source: FedAvg (arXiv 1602.05629) on the linear probe of CLIP (arXiv 2103.00020).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedapt.data.domains import Labelled
from fedapt.data.partition import Client
from fedapt.train.methods.base import Learned, Method, Objective, Predictor, text_logits


class LinearProbe(Method):
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

    def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
        """CE of the class."""
        return lambda learned, batch: cross_entropy(
            self._logits(learned, batch.features), batch.labels
        )

    def predictor(self, learned: Learned) -> Predictor:
        """The probe's logits."""

        def predict(images: Labelled, domain: int | None) -> Tensor:
            return self._logits(learned, images.features)

        return predict

    def _logits(self, learned: Learned, features: Tensor) -> Tensor:
        return text_logits(self.setting, features, learned["weight"]) + learned["bias"]
