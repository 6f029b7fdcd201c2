"""What the frozen features allow: classifiers on all clients' pooled images.

No federation may pool features like this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot

from fedapt.data.domains import Domain
from fedapt.model.backbone import Backbone
from fedapt.model.text_tower import TextTower
from fedapt.training.evaluate import accuracy

Part = Literal["validation", "test"]
Fit = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]


def pooled_accuracy(domains: Sequence[Domain], fit: Fit, part: Part = "test") -> float:
    """Mean accuracy over the domains of what `fit` finds on all of their training images.

    Args:
        fit: unit features float64 [n, D] and labels int64 [n] -> what gives scores of features.
    """
    train = [domain.train.load() for domain in domains]
    classify = fit(
        torch.cat([normalize(images.features, dim=-1).double() for images in train]),
        torch.cat([images.labels for images in train]),
    )
    shares = []
    for domain in domains:
        images = getattr(domain, part).load()
        found = classify(normalize(images.features, dim=-1).double())
        shares.append(accuracy(found, images.labels))
    return fmean(shares)


def pooled_fits(backbone: Backbone) -> dict[str, Fit]:
    """All of them, by name."""
    scale = float(backbone.logit_scale)
    return {
        "ridge regression": fit_ridge,
        "unit class vectors": fit_unit_vectors(scale),
        "unit class vectors within reach of one copy of the text tower": fit_reachable(
            backbone.text_tower, scale
        ),
    }


def fit_ridge(features: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Ridge regression on +1 and -1, penalty 1."""
    targets = 2 * one_hot(labels).double() - 1
    centre, offset = features.mean(0), targets.mean(0)
    x = features - centre
    gram = x.T @ x + torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, x.T @ (targets - offset))
    return lambda other: (other - centre) @ weights + offset


def fit_unit_vectors(scale: float) -> Fit:
    """FedAPT's own form, cosines to unit class vectors at CLIP's scale, brought to its optimum."""

    def fit(features: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        return _optimise(_class_means(features, labels), lambda x: x, scale, features, labels)

    return fit


def fit_reachable(tower: TextTower, scale: float) -> Fit:
    """The same, of vectors that one of `lite`'s two copies of a text tower could give alone.

    That is what their last LayerNorm and projection let through where both hold the same: half of
    the joint space, which is why there are two (fedapt/model/lite/side_by_side.py).
    """
    norm, projection = deepcopy(tower.ln_final).double(), tower.text_projection
    if not isinstance(projection, nn.Parameter):
        raise TypeError(f"a projection that is a matrix is expected, not {type(projection)}")
    first, second = projection.detach().double().chunk(2)

    def fit(features: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        means = _class_means(features, labels)
        hidden = torch.linalg.lstsq((first + second).T, means.T).solution.T
        hidden = hidden / hidden.std(1, keepdim=True)

        def to_text(copy: Tensor) -> Tensor:
            return norm(copy.repeat(1, 2)) @ torch.cat([first, second])

        return _optimise(hidden, to_text, scale, features, labels)

    return fit


def _class_means(features: Tensor, labels: Tensor) -> Tensor:
    n_classes = int(labels.max()) + 1
    return torch.stack([features[labels == c].mean(0) for c in range(n_classes)])


def _optimise(
    start: Tensor,
    to_text: Callable[[Tensor], Tensor],
    scale: float,
    features: Tensor,
    labels: Tensor,
) -> Callable[[Tensor], Tensor]:
    learned = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([learned], max_iter=300, line_search_fn="strong_wolfe")

    def classify(other: Tensor) -> Tensor:
        return scale * other @ normalize(to_text(learned), dim=-1).T

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = cross_entropy(classify(features), labels)
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimizer.step(loss)  # type: ignore[no-untyped-call, arg-type]
    learned.requires_grad_(False)
    return classify
