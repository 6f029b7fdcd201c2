"""Aggregates that outvote, against numpy and by their papers' bounds, with colluding attackers."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedapt.core.config import FederationConfig
from fedapt.core.errors import FederationError
from fedapt.training.aggregate import Average
from fedapt.training.client import ClientUpdate
from fedapt.training.robust import Vote, count_needed, count_trimmed

Rows = NDArray[np.float64]
VALUES = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, -30.0], [9.0, 50.0], [100.0, 0.0]])
MAX_UPDATE = FederationConfig().max_update


def vote(values: Rows, **config: object) -> Rows:
    """Of replies whose values are two tensors."""
    start = {"a": torch.zeros(1), "b": torch.zeros(values.shape[1] - 1)}
    found = Vote(start, FederationConfig(**config))  # type: ignore[arg-type]
    for i, row in enumerate(torch.from_numpy(values).float()):
        found.add(ClientUpdate(i, {"a": row[:1], "b": row[1:]}, i + 1, 0.0), {})
    learned = found.result()
    assert learned["a"].dtype == learned["b"].dtype == torch.float32
    return torch.cat([learned["a"], learned["b"]]).double().numpy()


def test_median() -> None:
    assert vote(VALUES, aggregation="median").tolist() == [4.0, 10.0]
    assert vote(VALUES[:4], aggregation="median").tolist() == [3.0, 15.0]


def test_trimmed_mean() -> None:
    found = vote(VALUES, aggregation="trimmed-mean", trimmed=0.2)
    assert found.tolist() == pytest.approx([(2 + 4 + 9) / 3, (0 + 10 + 20) / 3])
    found = vote(VALUES, aggregation="trimmed-mean", trimmed=0.4, faulty=2)
    assert found.tolist() == [4.0, 10.0]


def krum_by_hand(values: Rows, faulty: int, kept: int) -> Rows:
    scores = []
    for i, row in enumerate(values):
        others = np.delete(values, i, axis=0)
        nearest = np.sort(((others - row) ** 2).sum(1))[: len(values) - faulty - 2]
        scores.append(nearest.sum())
    return values[np.argsort(scores, kind="stable")[:kept]].mean(0)


@pytest.mark.parametrize(("n", "faulty"), [(5, 1), (9, 1), (9, 3), (20, 4)])
def test_krum(n: int, faulty: int) -> None:
    for seed in range(5):
        values = np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32).astype(float)
        found = vote(values, aggregation="krum", faulty=faulty)
        assert found == pytest.approx(krum_by_hand(values, faulty, 1), abs=1e-6)
        found = vote(values, aggregation="multi-krum", faulty=faulty)
        assert found == pytest.approx(krum_by_hand(values, faulty, n - faulty - 2), abs=1e-6)


@pytest.mark.parametrize(
    ("aggregation", "faulty", "trimmed", "needed"),
    [
        ("median", 1, 0.2, 3),
        ("median", 3, 0.2, 7),
        ("trimmed-mean", 1, 0.2, 5),
        ("trimmed-mean", 2, 0.2, 10),
        ("trimmed-mean", 1, 0.3, 4),
        ("trimmed-mean", 3, 0.3, 10),
        ("krum", 1, 0.2, 5),
        ("multi-krum", 2, 0.2, 7),
    ],
)
def test_too_few_replies_to_outvote_any_are_refused(
    aggregation: str, faulty: int, trimmed: float, needed: int
) -> None:
    settings = {"aggregation": aggregation, "faulty": faulty, "trimmed": trimmed}
    config = FederationConfig(**settings)  # type: ignore[arg-type]
    values = np.arange(2.0 * needed).reshape(needed, 2)
    for n in range(1, needed):
        assert count_needed(config, n) == needed
        with pytest.raises(FederationError) as caught:
            vote(values[:n], **settings)
        assert caught.value.where == f"federation.aggregation = '{aggregation}'"
        assert caught.value.found == f"{n} usable replies"
        assert caught.value.expected == f"{needed} or more, with federation.faulty = {faulty}"
    assert count_needed(config, needed) == 0
    if aggregation == "trimmed-mean":
        assert count_trimmed(trimmed, needed) >= faulty > count_trimmed(trimmed, needed - 1)
    assert np.isfinite(vote(values, **settings)).all()


# attackers that know all that the honest send, and agree


def flip_sign(honest: Rows, count: int) -> Rows:
    return np.repeat(-10 * honest.mean(0, keepdims=True), count, axis=0)


def send_the_same(honest: Rows, count: int) -> Rows:
    return np.full((count, honest.shape[1]), 5.0)


def turn_the_product(honest: Rows, count: int) -> Rows:
    """The mean of all gets a negative inner product with that of the honest (arXiv 1903.03936)."""
    factor = 1.1 * len(honest) / count
    return np.repeat(-factor * honest.mean(0, keepdims=True), count, axis=0)


def stay_below_the_cap(honest: Rows, count: int) -> Rows:
    """As long as a reply may be (`federation.max_update`), each in another direction."""
    directions = np.random.default_rng(9).normal(size=(count, honest.shape[1]))
    return 0.999 * MAX_UPDATE * directions / np.linalg.norm(directions, axis=1, keepdims=True)


ATTACKS = (flip_sign, send_the_same, turn_the_product, stay_below_the_cap)
RULES = [("median", 11), ("trimmed-mean", 15), ("krum", 11), ("multi-krum", 11)]
FAULTY, WIDTH = 3, 40


def draw_honest(n: int, seed: int) -> Rows:
    """Updates of clients that agree in most things."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=WIDTH) + 0.3 * generator.normal(size=(n, WIDTH))


@pytest.mark.parametrize(("aggregation", "n"), RULES)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_colluders_are_outvoted(
    aggregation: str, n: int, attack: Callable[[Rows, int], Rows]
) -> None:
    for seed in range(5):
        honest = draw_honest(n - FAULTY, seed)
        values = np.concatenate([attack(honest, FAULTY), honest])
        found = vote(values, aggregation=aggregation, faulty=FAULTY)
        mean = honest.mean(0)
        # no further from the honest mean than an honest reply is
        furthest = np.linalg.norm(honest - mean, axis=1).max()
        assert np.linalg.norm(found - mean) <= furthest
        if aggregation in ("median", "trimmed-mean"):  # the papers' property, value by value
            assert (found >= honest.min(0) - 1e-6).all()
            assert (found <= honest.max(0) + 1e-6).all()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_the_mean_has_no_defence(attack: Callable[[Rows, int], Rows]) -> None:
    honest = draw_honest(8, 0)
    values = np.concatenate([attack(honest, FAULTY), honest])
    found = Average({"x": torch.zeros(WIDTH)}, "uniform")
    for i, row in enumerate(torch.from_numpy(values).float()):
        found.add(ClientUpdate(i, {"x": row}, 1, 0.0), {})
    moved = found.result()["x"].double().numpy()
    furthest = np.linalg.norm(honest - honest.mean(0), axis=1).max()
    assert np.linalg.norm(moved - honest.mean(0)) > furthest


@pytest.mark.parametrize("count", [2, 3, 4])
def test_colluders_that_send_the_same_are_not_krums_choice(count: int) -> None:
    """Below 2 f + 3 replies they would be: their distances to each other are zero."""
    for seed, place in itertools.product(range(3), (0, -1)):
        honest = draw_honest(count + 3, seed)
        same = np.full((count, WIDTH), 1.5)
        order = (same, honest) if place == 0 else (honest, same)
        found = vote(np.concatenate(order), aggregation="krum", faulty=count)
        assert not np.allclose(found, 1.5)
        assert min(np.abs(honest - found).max(1)) < 1e-6
