"""Calibration against sums by hand and a fine grid."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedapt.training.calibration import calibration_error, fit_scale


def logit_of(probability: float) -> list[float]:
    """Two classes, of which the first has this probability."""
    return [math.log(probability / (1 - probability)), 0.0]


def test_the_error_by_hand() -> None:
    # two images of confidence 0.9, one right; three of 0.7, all right
    logits = torch.tensor([logit_of(0.9)] * 2 + [logit_of(0.7)] * 3, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 0, 0])
    expected = 2 / 5 * abs(0.5 - 0.9) + 3 / 5 * abs(1.0 - 0.7)
    assert calibration_error(logits, labels) == pytest.approx(expected)


def test_probabilities_that_are_right_as_often_as_they_say_have_none() -> None:
    logits = torch.tensor([logit_of(0.75)] * 4, dtype=torch.float64)
    assert calibration_error(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.0, abs=1e-12)
    assert calibration_error(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)) == 0.0
    sure = torch.tensor([[100.0, 0.0]])
    assert calibration_error(sure, torch.tensor([1])) == pytest.approx(1.0)


def test_the_factor_has_the_least_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (200,), generator=generator)
    logits = torch.randn(200, 4, generator=generator)
    logits[torch.arange(200), labels] += 1.0
    for scale in (0.1, 1.0, 8.0):
        found = fit_scale(scale * logits, labels)
        grid = [found * (0.9 + 0.01 * step) for step in range(21)]
        losses = [float(cross_entropy(k * scale * logits.double(), labels)) for k in grid]
        assert min(losses) == losses[10]
        # the same probabilities, however large the logits were
        assert found * scale == pytest.approx(fit_scale(logits, labels), rel=1e-4)


def test_a_factor_changes_no_label_and_helps() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (300,), generator=generator)
    logits = 6 * torch.randn(300, 4, generator=generator)
    logits[torch.arange(300), labels] += 3.0
    factor = fit_scale(logits, labels)
    assert factor < 0.9
    assert torch.equal((factor * logits).argmax(-1), logits.argmax(-1))
    assert calibration_error(factor * logits, labels) < calibration_error(logits, labels)
