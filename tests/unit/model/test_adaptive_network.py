"""Domain weights: the equation by hand, and the places where it is 0 / 0."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fedapt.model.adaptive_network import domain_weights, draw_adaptive_network


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v) for v in values]
    return [p / sum(powers) for p in powers]


def assert_weights(scores: list[float], temperature: float, expected: list[float]) -> None:
    found = domain_weights(torch.tensor(scores), temperature)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


def test_four_domains_by_hand() -> None:
    # mean 3; squares 4 + 1 + 0 + 9 = 14; unbiased variance 14 / 3
    std = math.sqrt(14 / 3)
    standardised = [-2 / std, -1 / std, 0.0, 3 / std]
    assert_weights([1.0, 2.0, 3.0, 6.0], 1.0, softmax(standardised))
    assert_weights([1.0, 2.0, 3.0, 6.0], 0.5, softmax([2 * z for z in standardised]))


def test_the_spread_is_the_unbiased_one() -> None:
    # of two scores each is 1 / sqrt(2) off, whatever they are; a biased std would give 1
    expected = softmax([-(0.5**0.5), 0.5**0.5])
    assert_weights([3.0, 7.0], 1.0, expected)
    assert abs(expected[1] - softmax([-1.0, 1.0])[1]) > 0.05


def test_neither_an_offset_nor_a_factor_changes_the_weights() -> None:
    expected = domain_weights(torch.tensor([0.5, -1.0, 2.0]), 0.7)
    for scores in ([100.5, 99.0, 102.0], [0.05, -0.1, 0.2], [500.0, -1000.0, 2000.0]):
        torch.testing.assert_close(
            domain_weights(torch.tensor(scores), 0.7), expected, rtol=0, atol=1e-5
        )
    # and a negative factor does
    assert float(domain_weights(torch.tensor([-0.5, 1.0, -2.0]), 0.7)[1]) > float(expected[1])


def test_the_papers_temperature_chooses_one_domain() -> None:
    assert_weights([1.0, 2.0, 3.0, 6.0], 0.01, [0.0, 0.0, 0.0, 1.0])
    assert_weights([0.3, 0.2, 0.1, 0.0], 0.01, [1.0, 0.0, 0.0, 0.0])


def test_a_high_temperature_mixes_them() -> None:
    assert_weights([1.0, 2.0, 3.0, 6.0], 1e6, [0.25, 0.25, 0.25, 0.25])


@pytest.mark.parametrize("score", [0.0, -3.5, 1e30, math.inf, math.nan])
def test_one_domain_has_all_the_weight(score: float) -> None:
    for temperature in (1e-6, 0.01, 1.0):
        assert domain_weights(torch.tensor([[score]]), temperature).tolist() == [[1.0]]


@pytest.mark.parametrize("score", [0.0, 0.1, -1 / 3, 1e-30, 1e6])
def test_equal_scores_give_equal_weights(score: float) -> None:
    for n, temperature in itertools.product((2, 3, 7), (1e-6, 0.01, 1.0)):
        assert_weights([score] * n, temperature, [1 / n] * n)


@pytest.mark.parametrize("scale", [1e-38, 1e-12, 1.0, 1e12, 1e18])
def test_no_size_of_score_gives_nan(scale: float) -> None:
    scores = scale * torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    weights = domain_weights(scores, 0.01)
    assert bool(weights.isfinite().all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(100))


@pytest.mark.parametrize(("n", "expected"), [(2, 0.5**0.5), (4, 1.5), (9, 8 / 3)])
def test_the_largest_standardised_score_is_known(n: int, expected: float) -> None:
    # (N - 1) / sqrt(N), where one score stands out and the others are equal
    scores = torch.zeros(n)
    scores[1] = 5.0
    weights = domain_weights(scores, 1.0).double()
    low = -expected / (n - 1)  # the standardised scores sum to 0
    torch.testing.assert_close(
        (weights[1] / weights[0]).log(), torch.tensor(expected - low).double(), rtol=1e-5, atol=0
    )
    others = torch.randn(1000, n, generator=torch.Generator().manual_seed(0)).double()
    spread = (others - others.mean(-1, keepdim=True)) / others.std(-1, keepdim=True)
    assert float(spread.max()) <= expected + 1e-9


def test_a_batch_is_its_rows() -> None:
    scores = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    together = domain_weights(scores, 0.3)
    rows: list[Tensor] = [domain_weights(row, 0.3) for row in scores.flatten(0, 1)]
    torch.testing.assert_close(together.flatten(0, 1), torch.stack(rows))


def test_q_starts_as_torchs_linear_does() -> None:
    network = draw_adaptive_network(50, 64, seed=0)
    assert network.shape == (50, 64)
    assert network.dtype == torch.float32
    assert float(network.abs().max()) <= 1 / 8
    assert float(network.min()) < -0.12
    assert float(network.max()) > 0.12
    assert abs(float(network.mean())) < 0.005


def test_q_follows_from_the_seed() -> None:
    assert torch.equal(draw_adaptive_network(3, 8, 5), draw_adaptive_network(3, 8, 5))
    assert not torch.equal(draw_adaptive_network(3, 8, 5), draw_adaptive_network(3, 8, 6))


def test_drawing_q_leaves_torchs_own_generator_alone() -> None:
    before = torch.random.get_rng_state()
    draw_adaptive_network(3, 8, 5)
    assert torch.equal(torch.random.get_rng_state(), before)
