"""Zero-shot CLIP: "a photo of a {name}.", nothing learned, nothing sent.

Source: CLIP (arXiv 2103.00020).
"""

from __future__ import annotations

from torch import Tensor

from fedapt.model.head import single_bank
from fedapt.training.methods.base import (
    ALL_DOMAINS,
    FeatureMethod,
    Fusable,
    Learned,
    text_logits,
)


class ZeroShot(FeatureMethod):
    """Learned: nothing, so a run has no rounds."""

    title = "zero-shot"
    sends = False
    trains = False
    reads_labels = False
    source = "arXiv 2103.00020"

    def begin(self) -> Learned:
        """Nothing."""
        return {}

    def logits(self, learned: Learned, features: Tensor) -> Tensor:
        """Logits with the fixed text features, float32 [n, C]."""
        return text_logits(self.setting, features, self.setting.zero_shot)

    def fuse(self, learned: Learned, keys: tuple[str, ...], client: int | None = None) -> Fusable:
        """One bank of fixed text features."""
        head = single_bank(self.setting.zero_shot, self.setting.backbone.logit_scale)
        return Fusable(head, ALL_DOMAINS, lambda features: self.logits(learned, features))
