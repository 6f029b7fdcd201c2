"""Length, noise and epsilon, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedapt.training.privacy import clip_move, draw_normal, find_epsilon, measure_length


def find_delta(mu: float, epsilon: float) -> float:
    """Of a Gaussian mechanism with sensitivity over deviation mu (arXiv 1805.06530, theorem 8)."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    return phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize(
    "multipliers", [[4.0], [1.0] * 10, [2.0, 1.0, 3.0], [8.0] * 200, [0.8], [20.0] * 7]
)
@pytest.mark.parametrize("delta", [1e-3, 1e-5])
def test_epsilon_is_that_of_the_closed_form(multipliers: list[float], delta: float) -> None:
    mu = math.sqrt(sum(1 / z**2 for z in multipliers))
    assert find_delta(mu, find_epsilon(multipliers, delta)) == pytest.approx(delta, rel=1e-5)


def test_epsilon_is_at_most_that_of_renyi() -> None:
    # a / (2 z^2) of each release (arXiv 1702.07476, corollary 3), by the best order
    orders = np.linspace(1.01, 200, 9999)
    for rounds in (1, 10, 100):
        renyi = float((rounds * orders / (2 * 4.0**2) + math.log(1e5) / (orders - 1)).min())
        assert 0.5 * renyi < find_epsilon([4.0] * rounds, 1e-5) <= renyi


def test_releases_add_up_as_one() -> None:
    # 1/z^2 adds up: 1/2^2 + 1/2^2 = 1/sqrt(2)^2
    assert find_epsilon([2.0, 2.0], 1e-6) == pytest.approx(find_epsilon([math.sqrt(2)], 1e-6))
    assert find_epsilon([2.0, 2.0], 1e-6) > find_epsilon([2.0], 1e-6)


def test_all_tensors_are_shortened_as_one() -> None:
    start = {"a": torch.tensor([10.0, 0.0]), "b": torch.tensor([0.0])}
    learned = {"a": torch.tensor([12.0, 3.0]), "b": torch.tensor([6.0])}  # (2, 3, 6): length 7
    found = clip_move(learned, start, 3.5)
    assert (found["a"].tolist(), found["b"].tolist()) == ([1.0, 1.5], [3.0])
    assert found["a"].dtype == torch.float64
    assert measure_length(found) == 3.5
    assert clip_move(learned, start, 7.5)["b"].tolist() == [6.0]


def test_what_has_not_moved_has_no_length() -> None:
    start = {"a": torch.tensor([10.0, 0.0])}
    assert clip_move(start, start, 1.0)["a"].tolist() == [0.0, 0.0]


def test_normal_numbers_are_the_operating_systems() -> None:
    # the inverse at the middle of each of 2^53 steps; the outermost are finite
    words = np.array([0, 1 << 63, (1 << 64) - 1], np.uint64)
    found = draw_normal(torch.empty(3), words.tobytes())
    assert found[1] == pytest.approx(0.0, abs=1e-15)
    assert found[0] == pytest.approx(-8.292, abs=1e-3)
    assert found[2] == pytest.approx(8.21, abs=0.1)
    assert not torch.equal(draw_normal(torch.empty(9)), draw_normal(torch.empty(9)))
