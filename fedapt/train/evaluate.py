"""Accuracy of the global model per domain, zero-shot CLIP beside it, and the routing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedapt.data.domains import Domain
from fedapt.model.prompted_clip import GlobalModel


@dataclass(frozen=True)
class DomainResult:
    """Shares of right answers among `n` test images."""

    accuracy: float
    zero_shot: float
    n: int


@dataclass(frozen=True)
class Evaluation:
    """Results of all domains.

    Attributes:
        domains: by name.
        routing: domain -> key -> share of the domain's images whose largest weight is that key's.
        prompts: `banks` (mixed text banks, what the fused graph computes) or `exact`.
    """

    domains: dict[str, DomainResult]
    routing: dict[str, dict[str, float]]
    prompts: str

    @property
    def mean(self) -> float:
        """Mean accuracy over the domains that have test images."""
        return _mean([d.accuracy for d in self.domains.values() if d.n])

    @property
    def zero_shot_mean(self) -> float:
        """Mean zero-shot accuracy over the domains that have test images."""
        return _mean([d.zero_shot for d in self.domains.values() if d.n])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "mean": self.mean,
            "zero_shot_mean": self.zero_shot_mean,
            "domains": {name: vars(result) for name, result in self.domains.items()},
            "routing": self.routing,
            "prompts": self.prompts,
        }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows of float32 [n, C] whose largest logit is the label's; 0 without rows."""
    return float((logits.argmax(-1) == labels).double().mean()) if len(labels) else 0.0


def evaluate(
    model: GlobalModel,
    domains: Sequence[Domain],
    key_names: Sequence[str],
    zero_shot: Tensor,
    *,
    exact: bool = False,
) -> Evaluation:
    """Measure the global model on every domain's test images.

    Args:
        key_names: the domain of each key, in order.
        zero_shot: unit text features of "a photo of a {name}.", float32 [C, D].
        exact: encode every image's own prompts instead of mixing text banks; slow.
    """
    banks = model.text_banks
    results, routing = {}, {}
    for domain in domains:
        features, labels = domain.test.features, domain.test.labels
        logits = model.exact_logits(features) if exact else model.logits(features, banks)
        results[domain.name] = DomainResult(
            accuracy=accuracy(logits, labels),
            zero_shot=accuracy(normalize(features, dim=-1) @ zero_shot.T, labels),
            n=len(labels),
        )
        routed = torch.bincount(model.weights(features).argmax(-1), minlength=model.n_domains)
        shares = (routed / max(1, len(labels))).tolist()
        routing[domain.name] = dict(zip(key_names, shares, strict=True))
    return Evaluation(results, routing, "exact" if exact else "banks")
