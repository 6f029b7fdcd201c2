"""Zero-shot CLIP: "a photo of a {name}.", nothing learned, nothing sent.

Source: CLIP (arXiv 2103.00020).
"""

from __future__ import annotations

from fedapt.data.partition import Client
from fedapt.train.methods.base import Learned, Method, Objective, Predictor, text_logits


class ZeroShot(Method):
    """Learned: nothing, so a run has no rounds."""

    title = "zero-shot"
    sends = False
    trains = False
    source = "arXiv 2103.00020"

    def begin(self) -> Learned:
        """Nothing."""
        return {}

    def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
        """Never called: there is nothing to train."""
        raise AssertionError("zero-shot has no rounds")

    def predictor(self, learned: Learned) -> Predictor:
        """Logits against the fixed text features."""
        text = self.setting.zero_shot
        return lambda images, domain: text_logits(self.setting, images.features, text)
