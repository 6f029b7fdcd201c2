"""Predictions: rows of the graph's outputs, with the names of classes and domains."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.manifest import Manifest
from fedapt_runtime.unknown import UnknownSignal

NOT_FINITE = "the model returned NaN or infinity"


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image, or the reason why there is none (`error`).

    Attributes:
        path: the file, or `#i` for the i-th array.
        label: the most probable class.
        score: its probability.
        top_k: the k most probable classes with their probabilities, in descending order.
        routed_to: the domain whose prompt has the largest weight. This is not a domain classifier:
            `fedapt evaluate` shows how many images of each domain are routed to it.
        domain_weights: weight of each domain's prompt in the prompt of this image; the sum is 1.
        error: the reason why there is no prediction.
        unknown_score: on request, the distance of the image from the known domains, in standard
            deviations above their mean; see `unknown.UnknownSignal`.
        unknown: on request, whether this score is above the model's threshold.
    """

    path: str
    label: str | None = None
    score: float | None = None
    top_k: tuple[tuple[str, float], ...] = ()
    routed_to: str | None = None
    domain_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    error: str | None = None
    unknown_score: float | None = None
    unknown: bool | None = None

    def to_dict(self, flag_unknown: bool = False) -> dict[str, Any]:
        """Plain values for JSON; `flag_unknown` includes `unknown_score` and `unknown`."""
        # dataclasses.asdict copies every value, which takes longer than the rest of a row
        fields = vars(self) | {"domain_weights": dict(self.domain_weights)}
        if not flag_unknown:
            del fields["unknown_score"], fields["unknown"]
        return fields


def read_outputs(
    names: Sequence[str],
    outputs: Outputs,
    manifest: Manifest,
    top_k: int,
    signal: UnknownSignal | None = None,
) -> Iterator[Prediction]:
    """Yield a prediction for each row of the graph's outputs.

    numpy processes the whole batch and releases the interpreter lock. On a fast GPU, the work per
    image in this function limits the speed of the job.

    Args:
        names: name of each row's image.
        outputs: the graph's outputs.
        manifest: names of classes and domains.
        top_k: number of classes to report.
        signal: scores the distance from the known domains; None leaves these fields empty.
    """
    probabilities, weights = softmax(outputs.logits), outputs.domain_weights
    finite = np.logical_and(
        np.isfinite(probabilities).all(axis=-1), np.isfinite(weights).all(axis=-1)
    )
    order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top_k]
    largest = np.take_along_axis(probabilities, order, axis=-1)
    scores: list[float | None] = [None] * len(names)
    unknown: list[bool | None] = [None] * len(names)
    if signal is not None:
        found = signal.score(outputs.features)
        scores, unknown = found.tolist(), (found > signal.threshold).tolist()
    classes, domains = manifest.classes, manifest.domains
    for name, is_finite, indices, values, domain, row, score, is_unknown in zip(
        names,
        finite.tolist(),
        order.tolist(),
        largest.tolist(),
        weights.argmax(axis=-1).tolist(),
        weights.tolist(),
        scores,
        unknown,
        strict=True,
    ):
        if not is_finite:
            yield Prediction(path=name, error=f"{name}: {NOT_FINITE}")
            continue
        yield Prediction(
            path=name,
            label=classes[indices[0]],
            score=values[0],
            top_k=tuple(zip((classes[i] for i in indices), values, strict=True)),
            routed_to=domains[domain],
            domain_weights=dict(zip(domains, row, strict=True)),
            unknown_score=score,
            unknown=is_unknown,
        )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax over the last axis, float32."""
    with np.errstate(invalid="ignore"):  # infinity gives NaN, which the caller checks
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32)
