"""A signal for images from no known domain: how unsure the adaptive network is of the domain.

The domain weights themselves say nothing of it: their temperature makes them one-hot for nearly
every image, known or not. The scores z = Q f behind them are the logits of a domain classifier, and
the entropy of softmax(z) tells some unknown domains from known ones (docs/methods.md has how well,
and where it does not). The threshold is set at export, on images that were held out of training.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.errors import ModelFileError, RuntimeFailure
from fedapt_runtime.manifest import Manifest

SCORE = "entropy of softmax(Q f), in units of log N"


@dataclass(frozen=True)
class UnknownSignal:
    """Scores features and compares them with a threshold.

    Attributes:
        network: Q, float32 [N, D], N > 1.
        threshold: scores above it are flagged.
        kept: share of the held-out images of known domains at or below the threshold.
        images: how many these were.
    """

    network: NDArray[np.float32]
    threshold: float
    kept: float
    images: int

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """From 0, sure of the domain, to 1: float32 [batch] of features float32 [batch, D]."""
        z = features.astype(np.float64) @ self.network.T
        z -= z.max(axis=-1, keepdims=True)
        powers = np.exp(z)
        total = powers.sum(axis=-1, keepdims=True)
        # -sum p log p with log p = z - log(total), which no small p makes infinite
        entropy = (powers / total * (np.log(total) - z)).sum(axis=-1)
        return np.asarray(entropy / np.log(len(self.network)), dtype=np.float32)

    def to_block(self) -> dict[str, Any]:
        """The manifest's block `unknown`."""
        return {
            "score": SCORE,
            "adaptive_network": base64.b64encode(self.network.astype("<f4").tobytes()).decode(),
            "shape": list(self.network.shape),
            "threshold": self.threshold,
            "kept": self.kept,
            "images": self.images,
        }


def calibrate_signal(
    network: NDArray[np.float32], features: NDArray[np.float32], keep: float
) -> UnknownSignal:
    """A signal whose threshold keeps a share of these images.

    Args:
        network: Q, float32 [N, D].
        features: of held-out images of the known domains, float32 [n, D].
        keep: share of them that must not be flagged.
    """
    unset = UnknownSignal(np.asarray(network, np.float32), 1.0, 1.0, len(features))
    scores = unset.score(features)
    threshold = float(np.quantile(scores, keep, method="higher"))
    kept = float((scores <= threshold).mean())
    return UnknownSignal(unset.network, threshold, kept, len(features))


def read_signal(manifest: Manifest, where: object) -> UnknownSignal:
    """The signal in a manifest.

    Raises:
        RuntimeFailure: the model has none.
        ModelFileError: its block is damaged.
    """
    block = manifest.unknown
    if block is None:
        raise RuntimeFailure(
            where=where,
            found="a model without a signal for unknown domains",
            expected="one that was exported with images of two or more domains at hand",
            next_step="export it again with --data, or leave --flag-unknown out",
        )
    try:
        raw = base64.b64decode(block["adaptive_network"], validate=True)
        shape = tuple(int(n) for n in block["shape"])
        network = np.frombuffer(raw, dtype="<f4").reshape(shape)
        if len(shape) != 2 or len(network) < 2 or not np.isfinite(network).all():
            raise ValueError(f"an adaptive network {list(shape)}")
        if block["score"] != SCORE:
            raise ValueError(f"the score {block['score']!r}")
        return UnknownSignal(
            network, float(block["threshold"]), float(block["kept"]), int(block["images"])
        )
    except (binascii.Error, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            where=where,
            found=f"a damaged signal for unknown domains ({type(error).__name__}: {error})",
            expected="the block `unknown` that `fedapt export` writes",
            next_step="export the model again with `fedapt export`",
        ) from error
