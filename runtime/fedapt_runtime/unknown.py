"""A signal for images from no known domain: between the known domains, or far from all of them.

The domain weights do not show it: their temperature makes them one-hot for nearly every image,
known or not. Two other values show it, each for other images:

- the scores z = Q f behind the weights are the logits of a domain classifier; the entropy of
  softmax(z) is high between domains;
- the distance of the unit feature to the nearest class centre of the domain that the image is
  routed to is high for images unlike all training images, such as drawings among photos.

The signal is the maximum of both, each in standard deviations of held-out images of the known
domains. docs/unknown.md shows how well this distinguishes domains, and where it fails.
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

SCORE = "max of entropy of softmax(Q f) and distance to class centres, standardised"
_MIN_STD = 1e-6

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class UnknownSignal:
    """Scores features and compares them with a threshold.

    Attributes:
        network: Q, float32 [N, D], N > 1.
        centres: unit vectors, float32 [G, D].
        domains: the domain of each centre, int64 [G]; each domain has at least one.
        usual: mean and standard deviation of the entropy, and of the distance, over the held-out
            images.
        threshold: scores above it are flagged.
        kept: share of the held-out images at or below the threshold.
        images: number of held-out images.
    """

    network: Rows
    centres: Rows
    domains: NDArray[np.int64]
    usual: tuple[float, float, float, float]
    threshold: float
    kept: float
    images: int

    def score(self, features: Rows) -> Rows:
        """Standard deviations above the mean, float32 [batch].

        Args:
            features: float32 [batch, D].
        """
        entropy, distance = measure_features(features, self.network, self.centres, self.domains)
        mean, std, mean_distance, std_distance = self.usual
        standard = (entropy - mean) / std, (distance - mean_distance) / std_distance
        return np.asarray(np.maximum(*standard), dtype=np.float32)

    def to_block(self) -> dict[str, Any]:
        """The manifest's block `unknown`."""
        return {
            "score": SCORE,
            "adaptive_network": _encode(self.network, "<f4"),
            "centres": _encode(self.centres, "<f2"),
            "domains": self.domains.tolist(),
            "width": self.network.shape[1],
            "usual": list(self.usual),
            "threshold": self.threshold,
            "kept": self.kept,
            "images": self.images,
        }


def measure_features(
    features: Rows, network: Rows, centres: Rows, domains: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Entropy of the domain in units of log N, and distance to the nearest centre: [batch] each.

    The distance is 1 minus the cosine. Only centres of the most probable domain count.

    Args:
        features: float32 [batch, D].
        network, centres, domains: see `UnknownSignal`.
    """
    rows = features.astype(np.float64)
    z = rows @ network.T
    z -= z.max(axis=-1, keepdims=True)
    powers = np.exp(z)
    total = powers.sum(axis=-1, keepdims=True)
    # -sum p log p with log p = z - log(total), which is finite for any p
    entropy = (powers / total * (np.log(total) - z)).sum(axis=-1) / np.log(len(network))
    length = np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    cosine = (rows / length) @ centres.T
    of_domain = domains == z.argmax(axis=-1)[:, None]
    return entropy, 1.0 - np.where(of_domain, cosine, -1.0).max(axis=-1)


def calibrate_signal(
    network: Rows, centres: Rows, domains: NDArray[np.int64], held_out: Rows, keep: float
) -> UnknownSignal:
    """A signal whose threshold keeps a share of the held-out images.

    Args:
        network: Q, float32 [N, D].
        centres: unit means of the training features of each domain and class, float32 [G, D].
        domains: the domain of each centre, int64 [G].
        held_out: features of other images of the known domains, float32 [n, D].
        keep: minimum share of them that must not be flagged.
    """
    network = np.asarray(network, np.float32)
    centres = centres.astype("<f2").astype(np.float32)  # as the manifest keeps them
    found = measure_features(held_out, network, centres, domains)
    (mean, std), (far, far_std) = ((float(v.mean()), float(v.std())) for v in found)
    usual = (mean, max(std, _MIN_STD), far, max(far_std, _MIN_STD))
    scores = UnknownSignal(network, centres, domains, usual, 0.0, 0.0, 0).score(held_out)
    threshold = float(np.quantile(scores, keep, method="higher"))
    kept = float((scores <= threshold).mean())
    return UnknownSignal(network, centres, domains, usual, threshold, kept, len(held_out))


def read_signal(manifest: Manifest, where: object) -> UnknownSignal:
    """The signal in a manifest.

    Args:
        manifest: manifest of the model.
        where: the option or file, for messages.

    Raises:
        RuntimeFailure: the model has no signal.
        ModelFileError: the signal is damaged.
    """
    block = manifest.unknown
    if block is None:
        raise RuntimeFailure(
            where=where,
            found="a model without a signal for unknown domains",
            expected="a model exported with images of two or more domains",
            next_step="export it again with its images, or omit `flag_unknown`",
        )
    try:
        if block["score"] != SCORE:
            raise ValueError(f"the score {block['score']!r}")
        width = int(block["width"])
        network = _decode(block["adaptive_network"], "<f4", width)
        centres = _decode(block["centres"], "<f2", width)
        domains = np.array(block["domains"], dtype=np.int64)
        if domains.shape != (len(centres),) or {*domains.tolist()} != {*range(len(network))}:
            raise ValueError(f"{len(centres)} centres of {len(network)} domains")
        mean, std, far, far_std = (float(value) for value in block["usual"])
        if len(network) < 2 or not (std > 0 and far_std > 0):
            raise ValueError(f"{len(network)} domains, deviations of {std} and {far_std}")
        return UnknownSignal(
            network=network,
            centres=centres,
            domains=domains,
            usual=(mean, std, far, far_std),
            threshold=float(block["threshold"]),
            kept=float(block["kept"]),
            images=int(block["images"]),
        )
    except (binascii.Error, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ModelFileError(
            where=where,
            found=f"a damaged signal for unknown domains ({type(error).__name__}: {error})",
            expected="the block `unknown` that `fedapt export` writes",
            next_step="export the model again with `fedapt export`",
        ) from error


def _encode(values: Rows, dtype: str) -> str:
    return base64.b64encode(values.astype(dtype).tobytes()).decode()


def _decode(text: str, dtype: str, width: int) -> Rows:
    raw = base64.b64decode(text, validate=True)
    values = np.frombuffer(raw, dtype=dtype).reshape(-1, width).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("NaN or infinity")
    return values
