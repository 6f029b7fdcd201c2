"""Flower's aggregates on replies of ours, against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedapt.core.config import FederationConfig
from fedapt.core.errors import FederationError
from fedapt.federation.flower.robust import Robust
from fedapt.train.aggregate import Average
from fedapt.train.client import ClientUpdate
from fedapt.train.methods import Learned

VALUES = ([1.0, 10.0], [2.0, 20.0], [4.0, -30.0], [9.0, 50.0], [100.0, 0.0])


def aggregate(
    values: tuple[list[float], ...] = VALUES, weighting: str = "uniform", **config: object
) -> Learned:
    found = Robust(FederationConfig(**config), weighting)  # type: ignore[arg-type]
    for i, value in enumerate(values):
        found.add(ClientUpdate(i, {"x": torch.tensor(value)}, i + 1, 0.0), {})
    return found.result({"x": torch.zeros(2)})


def test_the_mean_is_ours() -> None:
    for weighting in ("uniform", "samples"):
        ours = Average(weighting)
        for i, value in enumerate(VALUES):
            ours.add(ClientUpdate(i, {"x": torch.tensor(value)}, i + 1, 0.0), {})
        expected = ours.result({"x": torch.zeros(2)})["x"]
        # a clip that clips nothing
        found = aggregate(weighting=weighting, clip=1e6)["x"]
        torch.testing.assert_close(found, expected)


def test_median() -> None:
    found = aggregate(aggregation="median")["x"]
    assert found.tolist() == [4.0, 10.0]
    assert found.dtype == torch.float32


def test_trimmed_mean() -> None:
    found = aggregate(aggregation="trimmed-mean", trimmed=0.2)["x"]
    assert found.tolist() == pytest.approx([(2 + 4 + 9) / 3, (0 + 10 + 20) / 3])


def test_krum_takes_one_reply_among_those_that_agree() -> None:
    values = ([1.0, 1.0], [1.1, 1.0], [1.0, 1.2], [-1000.0, 1000.0])
    found = aggregate(values, aggregation="krum", faulty=1)["x"].tolist()
    assert any(np.allclose(found, value) for value in values[:3])


def test_krum_needs_enough_replies() -> None:
    with pytest.raises(FederationError, match="found 3 replies; expected at least 4"):
        aggregate(VALUES[:3], aggregation="krum", faulty=1)


def test_a_long_update_is_shortened() -> None:
    found = aggregate(([3.0, 4.0], [0.3, 0.4], [0.0, 0.0]), clip=1.0)["x"].tolist()
    assert found == pytest.approx([(0.6 + 0.3) / 3, (0.8 + 0.4) / 3])


def test_clipping_counts_from_the_start() -> None:
    found = Robust(FederationConfig(clip=1.0), "uniform")
    found.add(ClientUpdate(0, {"x": torch.tensor([10.0, 5.0])}, 1, 0.0), {})
    assert found.result({"x": torch.tensor([10.0, 0.0])})["x"].tolist() == [10.0, 1.0]


def test_a_slice_is_aggregated_over_its_owners() -> None:
    found = Robust(FederationConfig(aggregation="median"), "uniform")
    for i, value in enumerate((1.0, 2.0, 9.0, 5.0)):
        own = torch.tensor([value])
        learned = {"own": own, "shared": own}
        found.add(ClientUpdate(i, learned, 1, 0.0), {"own": 0 if i < 3 else 2})
    start = {"own": torch.full((3, 1), -1.0), "shared": torch.zeros(1)}
    learned = found.result(start)
    assert learned["own"].flatten().tolist() == [2.0, -1.0, 5.0]
    assert learned["shared"].tolist() == [3.5]
    assert start["own"].flatten().tolist() == [-1.0] * 3


def test_noise_has_the_width_that_it_should() -> None:
    found = Robust(FederationConfig(clip=2.0, noise=3.0), "uniform")
    n = 40_000
    for i in range(4):
        found.add(ClientUpdate(i, {"x": torch.full((n,), 1e-9)}, 1, 0.0), {})
    noise = found.result({"x": torch.zeros(n)})["x"]
    expected = 3.0 * 2.0 / 4
    assert float(noise.std()) == pytest.approx(expected, rel=0.03)
    assert abs(float(noise.mean())) < 4 * expected / math.sqrt(n)
    again = found.result({"x": torch.zeros(n)})["x"]
    assert not torch.equal(noise, again)


def test_epsilon_is_the_accountants() -> None:
    found = Robust(FederationConfig(clip=1.0, noise=4.0, delta=1e-5), "uniform")
    for i in range(8):
        found.add(ClientUpdate(i, {"x": torch.zeros(1)}, 1, 0.0), {})
    one, ten = found.describe(1)["epsilon"], found.describe(10)["epsilon"]
    # RDP of the Gaussian, r a / (2 z^2), to (epsilon, delta) by its best order (arXiv 1702.07476)
    for rounds, epsilon in ((1, one), (10, ten)):
        loose = min(
            rounds * a / (2 * 4.0**2) + math.log(1e5) / (a - 1)
            for a in np.linspace(1.01, 200, 9999)
        )
        assert 0.5 * loose < epsilon <= loose * 1.01
    assert Robust(FederationConfig(clip=1.0), "uniform").describe(3) == {}
