"""Ridge regression on all clients' pooled features: what the frozen features allow."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch
from torch.nn.functional import normalize, one_hot

from fedapt.data.domains import Domain
from fedapt.train.evaluate import accuracy


def ridge_accuracy(domains: Sequence[Domain]) -> float:
    """Mean test accuracy over the domains; no federation may pool features like this."""
    train = [domain.train.load() for domain in domains]
    x = torch.cat([normalize(images.features, dim=-1) for images in train]).double()
    y = torch.cat([images.labels for images in train])
    targets = 2 * one_hot(y).double() - 1
    centre = x.mean(0)
    x = x - centre
    gram = x.T @ x + 1.0 * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x.T @ (targets - targets.mean(0)))
    shares = []
    for domain in domains:
        test = domain.test.load()
        z = normalize(test.features, dim=-1).double() - centre
        shares.append(accuracy(z @ weights + targets.mean(0), test.labels))
    return fmean(shares)
