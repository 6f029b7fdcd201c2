"""Figures of many answers: bins, confusion, classes, worst mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedapt.report.answers import (
    Answer,
    class_results,
    confusion,
    expected_error,
    find_bins,
    worst_mistakes,
)
from fedapt.training.calibration import calibration_error


def answer(name: str, label: int, chosen: int, confidence: float, weight: float = 1.0) -> Answer:
    return Answer(Path(name), "photo", label, chosen, confidence, "photo", weight)


ANSWERS = [
    answer("a", 0, 0, 0.95),
    answer("b", 0, 1, 0.95),
    answer("c", 0, 1, 0.7),
    answer("d", 1, 1, 1.0),
]


def test_bins_hold_what_is_about_as_sure() -> None:
    # of 15 bins, 0.7 is in the 11th, and 0.95 and 1 are in the last
    low, high = find_bins(ANSWERS)
    assert (low.share, low.accuracy, low.confidence) == (0.25, 0.0, 0.7)
    assert (high.share, high.accuracy) == (0.75, pytest.approx(2 / 3))
    assert high.confidence == pytest.approx(2.9 / 3)
    assert expected_error([low, high]) == pytest.approx(0.25 * 0.7 + 0.75 * 0.3)


def test_the_error_of_the_bins_is_the_calibration_error() -> None:
    logits = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(200) % 3
    confidence, chosen = logits.softmax(-1).max(-1)
    values = zip(labels.tolist(), chosen.tolist(), confidence.tolist(), strict=True)
    answers = [answer(str(i), *row) for i, row in enumerate(values)]
    assert expected_error(find_bins(answers)) == pytest.approx(calibration_error(logits, labels))


def test_no_answers_have_no_bins_and_no_error() -> None:
    assert find_bins([]) == []
    assert expected_error([]) == 0


def test_confusion_has_a_row_of_shares_for_each_class() -> None:
    third = pytest.approx(1 / 3)
    assert confusion(ANSWERS, 3) == [[third, pytest.approx(2 / 3), 0], [0, 1, 0], [0, 0, 0]]


def test_models_that_answer_each_for_itself_share_an_images_weight() -> None:
    both = [answer("a", 0, 0, 0.9, 0.5), answer("a", 0, 1, 0.9, 0.5)]
    assert confusion(both, 2)[0] == [0.5, 0.5]
    (result,) = class_results(both, ["x", "y"])
    assert (result.n, result.accuracy) == (1, 0.5)


def test_classes_begin_with_the_smallest_accuracy_and_leave_out_the_untested() -> None:
    first, second = class_results(ANSWERS, ["mug", "cup", "bike"])
    assert (first.name, first.n, first.mistaken_for) == ("mug", 3, "cup")
    assert (first.accuracy, first.mistaken) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert (second.name, second.accuracy, second.mistaken_for) == ("cup", 1, "")


def test_the_worst_mistakes_are_the_surest_and_one_for_an_image() -> None:
    twice = [*ANSWERS, answer("c", 0, 2, 0.99)]
    assert [(a.path.name, a.confidence) for a in worst_mistakes(twice, 5)] == [
        ("c", 0.99),
        ("b", 0.95),
    ]
    assert len(worst_mistakes(twice, 1)) == 1
