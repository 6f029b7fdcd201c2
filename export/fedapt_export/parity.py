"""Parity of an exported file with its checkpoint, measured on images, with a verdict.

There are two comparisons. Torch and ONNX must agree up to float32's rounding, at several batch
sizes. The comparison of the fused graph with exact personalised prompts shows the cost of mixing
text banks: zero if the routing is one-hot, and small otherwise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from fedapt.core.errors import ParityError
from fedapt.model.backbone import Backbone
from fedapt.model.image_tower import FEATURES, image_tower
from fedapt.onnx.weights import open_model
from fedapt.training.methods.base import Fusable
from fedapt_export.head import LOGITS, build_head

BATCH_SIZES = (1, 2, 5, 8)
MAX_PROBABILITY_DIFFERENCE = 1e-3  # the head, torch against ONNX on the same features
ONE_HOT = 0.99


@dataclass(frozen=True)
class Parity:
    """Figures of the comparison.

    Attributes:
        images: number of compared images.
        source: description of the images.
        batch_sizes: batch sizes at which torch and ONNX were compared.
        feature_difference: maximum absolute difference of unit features, torch against ONNX; None
            for a head alone.
        probability_difference: maximum difference of class probabilities, torch head against ONNX.
        one_hot: share of images whose largest domain weight is over 0.99.
        agreement: share of images that have the same label under exact prompts.
        exact_logit_difference, exact_probability_difference: maximum differences, fused graph
            against exact prompts.
    """

    images: int
    source: str
    batch_sizes: tuple[int, ...]
    feature_difference: float | None
    probability_difference: float
    one_hot: float
    agreement: float
    exact_logit_difference: float
    exact_probability_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without figures that were not measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def check(
        self, min_agreement: float, where: object, max_feature_difference: float = 1e-4
    ) -> None:
        """Refuse a graph that does not compute what the checkpoint computes.

        Args:
            min_agreement: minimum share of images whose label must not change.
            where: the file, for messages.
            max_feature_difference: limit for unit features, far above float32's rounding.

        Raises:
            ParityError: a figure is beyond its limit or NaN.
        """
        limits = [
            ("unit features differ by", self.feature_difference, max_feature_difference),
            ("probabilities differ by", self.probability_difference, MAX_PROBABILITY_DIFFERENCE),
        ]
        for what, value, limit in limits:
            if value is not None and not value <= limit:  # NaN fails too
                raise ParityError(
                    where=where,
                    found=f"{what} {value:.2e} between torch and ONNX",
                    expected=f"at most {limit:.0e}",
                    next_step="report this with the model's name and the versions; nothing written",
                )
        if not self.agreement >= min_agreement:
            raise ParityError(
                where=where,
                found=f"{100 * self.agreement:.2f} % of {self.images} images keep their label"
                f" under exact prompts ({100 * self.one_hot:.1f} % are routed one-hot)",
                expected=f"at least {100 * min_agreement:g} %",
                next_step="train longer or with a lower temperature, or lower `min_agreement`",
            )


def measure_parity(
    model: onnx.ModelProto,
    fusable: Fusable,
    backbone: Backbone,
    images: NDArray[np.uint8],
    source: str,
) -> Parity:
    """Run the fused graph, the torch modules and the method itself on the same images.

    Args:
        model: the fused graph.
        fusable: the global model; for FedAPT, its `exact` encodes the prompts of each image.
        backbone: the CLIP model.
        images: uint8 [n, height, width, 3], at least one.
        source: origin of the images, for the report.
    """
    session = open_model(model, "cpu", "the fused graph")

    def run(batch: NDArray[np.uint8]) -> list[torch.Tensor]:
        outputs = session.run(["logits", "features"], {"images": batch})
        return [torch.from_numpy(output).to(backbone.device) for output in outputs]

    tower = (fusable.tower or image_tower(backbone)).to(backbone.device)
    head = fusable.head
    feature_differences, probability_differences = [], []
    for start, size in zip(np.cumsum((0, *BATCH_SIZES)), BATCH_SIZES, strict=False):
        batch = np.take(images, range(start, start + size), axis=0, mode="wrap")
        logits, features = run(batch)
        with torch.inference_mode():
            expected = tower(torch.from_numpy(batch).to(backbone.device)).float()
        feature_differences.append(_difference(normalize(features), normalize(expected)))
        reference = head.logits(features)
        probability_differences.append(_difference(logits.softmax(-1), reference.softmax(-1)))

    parts = [run(images[i : i + 32]) for i in range(0, len(images), 32)]
    logits, features = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return _compare_with_exact(
        fusable, logits, features, source, max(feature_differences), max(probability_differences)
    )


def measure_head(fusable: Fusable, features: torch.Tensor, source: str) -> Parity:
    """Run the head in ONNX and in torch, and the method itself, on the same image features.

    Args:
        fusable: the global model.
        features: float32 [n, D], at least one row.
        source: origin of their images, for the report.
    """
    session = open_model(build_head(fusable.head), "cpu", "the head")

    def run(batch: torch.Tensor) -> torch.Tensor:
        (logits,) = session.run([LOGITS], {FEATURES: batch.cpu().numpy()})
        return torch.from_numpy(logits).to(features.device)

    differences = []
    for start, size in zip(np.cumsum((0, *BATCH_SIZES)), BATCH_SIZES, strict=False):
        batch = features[[row % len(features) for row in range(start, start + size)]]
        reference = fusable.head.logits(batch).softmax(-1)
        differences.append(_difference(run(batch).softmax(-1), reference))
    return _compare_with_exact(fusable, run(features), features, source, None, max(differences))


def _compare_with_exact(
    fusable: Fusable,
    logits: torch.Tensor,
    features: torch.Tensor,
    source: str,
    feature_difference: float | None,
    probability_difference: float,
) -> Parity:
    exact = fusable.exact(features)
    return Parity(
        images=len(features),
        source=source,
        batch_sizes=BATCH_SIZES,
        feature_difference=feature_difference,
        probability_difference=probability_difference,
        one_hot=float((fusable.head.weights(features).amax(-1) > ONE_HOT).double().mean()),
        agreement=float((logits.argmax(-1) == exact.argmax(-1)).double().mean()),
        exact_logit_difference=_difference(logits, exact),
        exact_probability_difference=_difference(logits.softmax(-1), exact.softmax(-1)),
    )


def _difference(left: torch.Tensor, right: torch.Tensor) -> float:
    """Maximum absolute difference; NaN if either array contains NaN."""
    return float((left - right).abs().max())
