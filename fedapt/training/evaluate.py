"""Accuracy of the global model and of zero-shot CLIP by domain, and the routing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedapt.core.report import Reporter
from fedapt.data.domains import Domain, ImageSet
from fedapt.training.calibration import calibration_error
from fedapt.training.loop import Measured, mean
from fedapt.training.methods.analytic import POOLED
from fedapt.training.methods.base import Learned, Method, Predictor

LOW_ROUTING = 0.8


@dataclass(frozen=True)
class DomainResult:
    """Accuracies on `n` test images."""

    accuracy: float
    zero_shot: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; there are no accuracies without test images."""
        if self.n:
            return dict(vars(self))
        return {"accuracy": None, "zero_shot": None, "n": 0}


@dataclass(frozen=True)
class Evaluation:
    """Results of all domains.

    Attributes:
        title: title of the method.
        domains: name -> result.
        routing: domain -> key -> share of the domain's images whose largest weight is that key's;
            empty for a method without keys.
        prompts: `banks` (mixed text banks, what the fused graph computes) or `exact`.
        calibration: expected calibration error of each domain that has test images, see
            `fedapt.training.calibration`.
    """

    title: str
    domains: dict[str, DomainResult]
    routing: dict[str, dict[str, float]]
    prompts: str = "banks"
    calibration: Mapping[str, float] = field(default_factory=dict)

    @property
    def routed(self) -> dict[str, float]:
        """Share of each trained domain's test images that are routed to its own key.

        Images that a pooled bank takes do not count.
        """
        return find_routed({n: s for n, s in self.routing.items() if self.domains[n].n})

    @property
    def mean(self) -> float:
        """Mean accuracy over the domains that have test images."""
        return mean({name: d.accuracy for name, d in self.domains.items() if d.n})

    @property
    def zero_shot_mean(self) -> float:
        """Mean zero-shot accuracy over the domains that have test images."""
        return mean({name: d.zero_shot for name, d in self.domains.items() if d.n})

    @property
    def untested(self) -> list[str]:
        """Domains without test images, and therefore without results."""
        return [name for name, result in self.domains.items() if not result.n]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "method": self.title,
            "mean": self.mean if self.untested != list(self.domains) else None,
            "zero_shot_mean": self.zero_shot_mean if self.untested != list(self.domains) else None,
            "domains": {name: result.to_dict() for name, result in self.domains.items()},
            "routing": self.routing,
            "routed": self.routed,
            "prompts": self.prompts,
            "calibration_error": dict(self.calibration),
        }


def tell_untested(evaluation: Evaluation, reporter: Reporter) -> None:
    """Report the domains without test images, which have no accuracy."""
    if evaluation.untested:
        reporter.message(f"no test images, so no accuracy: {', '.join(evaluation.untested)}")


def tell_low_routing(evaluation: Evaluation, reporter: Reporter) -> None:
    """Report domains with few images routed to their own key, the effect, and a remedy."""
    low = {name: share for name, share in evaluation.routed.items() if share < LOW_ROUTING}
    if not low:
        return
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in low.items())
    reporter.message(
        f"routing: few test images go to their own domain ({shares}; expected"
        f" {100 * LOW_ROUTING:.0f} %). The others are answered with another domain's prompt, and"
        " `routed_to` does not say which domain an image is of. Raise train.router_lr or"
        " train.rounds, or train adaptive-analytic, whose router is solved instead of trained"
    )


def find_routed(routing: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Share of each domain's images that its own keys take; domains without a key are absent."""
    return {
        name: share_routed(name, shares)
        for name, shares in routing.items()
        if any(name in name_owners(key) for key in shares)
    }


def share_routed(domain: str, shares: Mapping[str, float]) -> float:
    """Share of a domain's images that its own keys take, among those that a domain's key takes.

    Args:
        shares: name of a key -> share of all images of the domain.
    """
    own = sum(share for key, share in shares.items() if domain in name_owners(key))
    claimed = sum(share for key, share in shares.items() if key != POOLED)
    return own / claimed if claimed else 0.0


def name_owners(key: str) -> list[str]:
    """The domains of a key, by its name; see `data.partition.name_keys`."""
    return [part.partition("/")[0] for part in key.split("+")]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows of float32 [n, C] whose maximum logit is that of the label; 0 without rows.

    For [models, n, C], the mean over the models.
    """
    return float((logits.argmax(-1) == labels).double().mean()) if len(labels) else 0.0


def measure(
    predict: Predictor,
    domains: Sequence[Domain],
    trained: Sequence[str],
    route: Route | None = None,
) -> Measured:
    """Test and validation accuracy of each domain that has such images.

    Args:
        trained: domains that have clients, in the order of their indices.
        route: routes images; the routing of test images is measured.
    """
    test = {d.name: d.test for d in domains}
    # a domain that is left out must not affect the choice of a round
    validation = {d.name: d.validation for d in domains if d.name in trained}
    logits = predict_parts(predict, test, trained)
    return Measured(
        _share_right(logits),
        _share_right(predict_parts(predict, validation, trained)),
        routed=find_routed(_find_routing(route, test)) if route else {},
        calibration=_find_calibration(logits),
    )


# (features float32 [n, D]) -> share of them that each key takes, by name; empty without keys
Route = Callable[[Tensor], dict[str, float]]


def make_route(method: Method, learned: Learned, key_names: Sequence[str]) -> Route:
    """The function that routes images, by the names of the keys."""

    def route(features: Tensor) -> dict[str, float]:
        weights = method.routing(learned, features)
        if weights is None:
            return {}
        routed = torch.bincount(weights.argmax(-1), minlength=len(key_names))
        shares = (routed / max(1, len(features))).tolist()
        return dict(zip(key_names, shares, strict=True))

    return route


def _find_routing(route: Route, parts: Mapping[str, ImageSet]) -> dict[str, dict[str, float]]:
    shares = {name: route(part.load().features) for name, part in parts.items() if len(part)}
    return {name: found for name, found in shares.items() if found}


def predict_parts(
    predict: Predictor, parts: Mapping[str, ImageSet], trained: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Logits float32 [n, C] or [models, n, C], and labels int64 [n], of domains with images.

    Args:
        parts: domain -> its images.
        trained: domains that have clients, in the order of their indices.
    """
    found = {}
    for name, images in parts.items():
        if len(images):
            loaded = images.load()
            logits = predict(loaded, trained.index(name) if name in trained else None)
            found[name] = logits, loaded.labels
    return found


def _share_right(predicted: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    return {name: accuracy(*pair) for name, pair in predicted.items()}


def _find_calibration(predicted: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Calibration error of each domain; with the logits of several models, their mean error."""
    errors = {}
    for name, (logits, labels) in predicted.items():
        models = logits if logits.dim() == 3 else logits.unsqueeze(0)
        errors[name] = mean({str(i): calibration_error(m, labels) for i, m in enumerate(models)})
    return errors


def evaluate(
    method: Method,
    learned: Learned,
    domains: Sequence[Domain],
    trained: Sequence[str],
    key_names: Sequence[str],
    *,
    predict: Predictor | None = None,
    known: Mapping[str, float] | None = None,
    calibration: Mapping[str, float] | None = None,
) -> Evaluation:
    """Measure the global model on every domain's test images.

    Args:
        trained: domains that have clients, in the order of their indices.
        key_names: name of each key, in order.
        predict: used instead of the method's own predictor, such as exact prompts.
        known: test accuracies that were measured before, with their `calibration`.
    """
    if known is None:
        test = {domain.name: domain.test for domain in domains}
        logits = predict_parts(predict or method.predictor(learned), test, trained)
        known, calibration = _share_right(logits), _find_calibration(logits)
    route = make_route(method, learned, key_names)
    zero_shot = method.setting.zero_shot
    results, routing = {}, {}
    for domain in domains:
        images = domain.test.load()
        unit = normalize(images.features, dim=-1)
        results[domain.name] = DomainResult(
            accuracy=known.get(domain.name, 0.0),
            zero_shot=accuracy(unit @ zero_shot.T, images.labels),
            n=len(images),
        )
        if shares := route(images.features):
            routing[domain.name] = shares
    prompts = "exact" if predict else "banks"
    return Evaluation(method.title, results, routing, prompts, calibration or {})
