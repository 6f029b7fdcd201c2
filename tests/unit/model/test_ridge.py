"""Sums and solutions against plain loops over images, and against numpy's least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedapt.model.ridge import (
    CONSTANT,
    UNIT,
    Sums,
    extend,
    pack,
    solve,
    solve_router,
    sum_images,
    unpack,
)

D, C = 4, 3


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FEATURES = 3 * draw(11, D, seed=1)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 1, 2])


def rows(features: Tensor) -> np.ndarray:
    """x of each image, float64."""
    f = features.double().numpy()
    unit = f / np.linalg.norm(f, axis=1, keepdims=True)
    return np.concatenate([unit, np.full((len(f), 1), 0.3)], axis=1)


def targets(labels: Tensor, n_classes: int = C) -> np.ndarray:
    return np.where(np.arange(n_classes) == labels.numpy()[:, None], 1.0, -1.0)


def ridge(x: np.ndarray, y: np.ndarray, penalty: float, pull: np.ndarray) -> np.ndarray:
    """min |x w - y|^2 + penalty |w - pull|^2, by least squares on further rows."""
    root = penalty**0.5
    further = np.concatenate([x, root * np.eye(x.shape[1])])
    found: np.ndarray = np.linalg.lstsq(further, np.concatenate([y, root * pull]), rcond=None)[0]
    return found


def test_sums_are_a_loop_over_images() -> None:
    sums = sum_images(FEATURES, LABELS, C)
    x, y = rows(FEATURES), targets(LABELS)
    gram = sum(np.outer(row, row) for row in x)
    products = sum(np.outer(row, target) for row, target in zip(x, y, strict=True))
    np.testing.assert_allclose(sums.gram.numpy() * 1024, gram, rtol=0, atol=1e-12)
    np.testing.assert_allclose(sums.targets.numpy() * 1024, products, rtol=0, atol=1e-12)
    assert sums.gram.dtype == sums.targets.dtype == torch.float64


def test_the_last_column_counts_images_and_adds_them_up() -> None:
    sums = sum_images(FEATURES, LABELS, C)
    assert sums.count * UNIT == pytest.approx(11)
    expected = rows(FEATURES).sum(0)
    np.testing.assert_allclose(sums.feature_sum.numpy() * UNIT, expected, rtol=0, atol=1e-12)


def test_an_upper_triangle_is_all_of_it() -> None:
    gram = sum_images(FEATURES, LABELS, C).gram
    packed = pack(gram)
    assert packed.shape == ((D + 1) * (D + 2) // 2,)
    assert torch.equal(unpack(packed), gram)
    assert pack(torch.tensor([[1.0, 2.0], [2.0, 3.0]])).tolist() == [1.0, 2.0, 3.0]


def test_the_pooled_solution_is_that_of_all_images_however_they_are_spread() -> None:
    pull = draw(D + 1, C, seed=3).double()
    expected = ridge(rows(FEATURES), targets(LABELS), 2.0, pull.numpy())
    for parts in ([11], [1, 10], [3, 3, 5], [1] * 11):
        clients = zip(FEATURES.split(parts), LABELS.split(parts), strict=True)
        first, *others = (sum_images(f, y, C) for f, y in clients)
        total = first
        for other in others:
            total = total + other
        found = solve(total, 2.0, pull)
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)


def test_without_images_the_solution_is_what_it_is_pulled_to() -> None:
    empty = sum_images(FEATURES[:0], LABELS[:0], C)
    pull = draw(D + 1, C, seed=3).double()
    torch.testing.assert_close(solve(empty, 0.5, pull), pull)
    assert empty.count == 0


def test_a_client_leaves_by_subtraction() -> None:
    rest, leaving = sum_images(FEATURES[:7], LABELS[:7], C), sum_images(FEATURES[7:], LABELS[7:], C)
    pull = torch.zeros(D + 1, C, dtype=torch.float64)
    without = solve((rest + leaving) - leaving, 1.0, pull)
    torch.testing.assert_close(without, solve(rest, 1.0, pull), rtol=0, atol=1e-12)
    assert float((without - solve(rest + leaving, 1.0, pull)).abs().max()) > 1e-3


def test_a_new_class_needs_no_image_again() -> None:
    old = sum_images(FEATURES, LABELS, C)
    new_features, new_labels = 3 * draw(5, D, seed=4), torch.full((5,), C)
    found = old.add_class() + sum_images(new_features, new_labels, C + 1)
    expected = sum_images(
        torch.cat([FEATURES, new_features]), torch.cat([LABELS, new_labels]), C + 1
    )
    torch.testing.assert_close(found.targets, expected.targets, rtol=0, atol=1e-15)
    torch.testing.assert_close(found.gram, expected.gram, rtol=0, atol=1e-15)


def test_the_router_gives_every_domain_the_same_weight() -> None:
    parts = [FEATURES[:8], FEATURES[8:]]
    sums = [sum_images(f, torch.zeros(len(f), dtype=torch.int64), 1) for f in parts]
    found = solve_router(sums, 0.7)
    # by weighted least squares: n / n_d for every image of domain d, n the mean
    x = rows(FEATURES)
    weights = np.sqrt(np.array([5.5 / 8] * 8 + [5.5 / 3] * 3))[:, None]
    domains = np.array([[1.0, 0.0]] * 8 + [[0.0, 1.0]] * 3)
    expected = ridge(weights * x, weights * domains, 0.7, np.zeros((D + 1, 2)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)


def test_a_domain_without_images_is_never_chosen() -> None:
    none = sum_images(FEATURES[:0], LABELS[:0], C)
    some = sum_images(FEATURES, LABELS, C)
    found = solve_router([some, none, some], 1.0)
    assert found[:, 1].abs().max() == 0
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found[:, 0], found[:, 2])


def test_features_are_read_by_their_direction_alone() -> None:
    torch.testing.assert_close(extend(FEATURES), extend(7 * FEATURES), rtol=0, atol=1e-7)
    assert extend(FEATURES)[:, -1].tolist() == [CONSTANT] * 11
    assert isinstance(sum_images(FEATURES, LABELS, C), Sums)


def test_noise_that_makes_a_indefinite_does_not_spoil_the_solution() -> None:
    gram = torch.diag(torch.tensor([4.0, 1.0, -0.5], dtype=torch.float64)) / UNIT
    targets = torch.tensor([[4.0], [2.0], [3.0]], dtype=torch.float64) / UNIT
    pull = torch.tensor([[0.0], [0.0], [7.0]], dtype=torch.float64)
    # the negative eigenvalue counts as 0: (4 + 1)^-1 4, (1 + 1)^-1 2, (0 + 1)^-1 (3 + 7)
    found = solve(Sums(gram, targets), 1.0, pull)
    expected = torch.tensor([[0.8], [1.0], [10.0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_rounding_does_not_change_the_solution() -> None:
    # far below the penalty: solved as it is
    gram = torch.diag(torch.tensor([4.0, -1e-4], dtype=torch.float64)) / UNIT
    targets = torch.tensor([[4.0], [3.0]], dtype=torch.float64) / UNIT
    found = solve(Sums(gram, targets), 1.0, torch.zeros(2, 1, dtype=torch.float64))
    expected = torch.tensor([[0.8], [3.0 / (1 - 1e-4)]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
