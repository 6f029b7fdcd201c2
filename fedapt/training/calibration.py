"""Calibration error of probabilities, and the factor on the logits that reduces it.

    ECE     sum over 15 bins of confidence:  share of images in it x |accuracy - mean confidence|
    scale   the factor k that minimises the mean of -log softmax(k logits)[label]

A factor changes no label. Source: On Calibration of Modern Neural Networks (arXiv 1706.04599).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

BINS = 15
_STEPS = 60
_MAX_EXPONENT = 4.0  # factors from 1/55 to 55


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error, 0 to 1, of logits [n, C] and labels int64 [n]; 0 for none."""
    if not len(labels):
        return 0.0
    confidence, chosen = logits.double().softmax(-1).max(-1)
    right = (chosen == labels).double()
    places = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = [float((right[places == b] - confidence[places == b]).sum().abs()) for b in range(BINS)]
    return sum(gaps) / len(labels)


def fit_scale(logits: Tensor, labels: Tensor) -> float:
    """The factor on logits [n, C] with the minimum loss on labels int64 [n]; n > 0.

    The loss is convex in the factor, so a ternary search finds the minimum.
    """
    values = logits.double()

    def loss(exponent: float) -> float:
        return float(cross_entropy(values * torch.tensor(exponent).exp().double(), labels))

    low, high = -_MAX_EXPONENT, _MAX_EXPONENT
    for _ in range(_STEPS):
        third = (high - low) / 3
        left, right = low + third, high - third
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return float(torch.tensor((low + high) / 2, dtype=torch.float64).exp())
