"""A custom federated method: averaged class vectors that start at zero-shot CLIP.

python examples/own_method.py ROOT
"""

from __future__ import annotations

import sys

from torch import Tensor

import fedapt
from fedapt.training.methods import Learned
from fedapt.training.methods.base import FeatureMethod, text_logits


class ClassVectors(FeatureMethod):
    """Learned: T float32 [C, D], a vector for each class, which starts as its text feature."""

    title = "class vectors"

    def begin(self) -> Learned:
        """Zero-shot CLIP."""
        return {"vectors": self.setting.zero_shot.clone()}

    def logits(self, learned: Learned, features: Tensor) -> Tensor:
        """exp(s) f^ . T, float32 [n, C]; its cross entropy is the clients' loss."""
        return text_logits(self.setting, features, learned["vectors"])


if __name__ == "__main__":
    fedapt.register_method("class-vectors", ClassVectors)
    for method in ("zero-shot", "class-vectors"):
        run = fedapt.train(sys.argv[1], out=f"runs/{method}", method=method, rounds=5)
        print(f"{method}: {run.evaluation.mean:.1%}")
