"""Noise of the nodes: how long, how wide, and what it gives away."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Error, Message

from fedapt.core.config import FederationConfig
from fedapt.federation.flower.privacy import account, account_nodes, blur
from fedapt.federation.flower.secure.encoding import Encoding
from fedapt.model.backbone import Backbone
from fedapt.train.client import ClientUpdate
from tests.support.nodes import configure, connect, open_session, run
from tests.support.tiny import write_tiny_images


def of(a: list[float], b: float) -> ClientUpdate:
    return ClientUpdate(2, {"a": torch.tensor(a), "b": torch.tensor([b])}, 5, 0.5)


START = {"a": torch.tensor([10.0, 0.0]), "b": torch.tensor([0.0])}


def test_a_long_update_is_shortened_as_one() -> None:
    # (2, 3, 6) has length 7
    found = blur(of([12.0, 3.0], 6.0), START, FederationConfig(node_clip=3.5))
    assert found.learned["a"].tolist() == pytest.approx([11.0, 1.5])
    assert found.learned["b"].tolist() == [3.0]
    assert (found.client, found.n_samples, found.loss) == (2, 5, 0.5)
    short = of([12.0, 3.0], 6.0)
    assert blur(short, START, FederationConfig()) is short
    for config in (FederationConfig(node_clip=7.5), FederationConfig(node_clip=7.0)):
        kept = blur(short, START, config)
        assert all(torch.equal(kept.learned[n], short.learned[n]) for n in START)
    still = blur(ClientUpdate(0, START, 1, 0.0), START, FederationConfig(node_clip=1.0))
    assert all(torch.equal(still.learned[n], START[n]) for n in START)


def test_noise_is_normal_and_new_each_time() -> None:
    n = 100_000
    start = {"x": torch.full((n // 2, 2), 3.0)}
    still = ClientUpdate(0, start, 1, 0.0)
    config = FederationConfig(node_clip=2.0, node_noise=0.25)
    noise, again = (blur(still, start, config).learned["x"] - 3.0 for _ in range(2))
    assert noise.shape == (n // 2, 2)
    assert not (noise == again).any(dim=1).all()
    values = np.sort(noise.numpy().ravel() / 0.5)
    # Kolmogorov-Smirnov: sqrt(n) times the largest gap is above 2.2 once in 10^4
    exact = 0.5 * (1 + torch.erf(torch.from_numpy(values).double() / math.sqrt(2)).numpy())
    assert abs(exact - (np.arange(n) + 0.5) / n).max() * math.sqrt(n) < 2.2
    assert abs(np.corrcoef(noise.ravel(), again.ravel())[0, 1]) < 5 / math.sqrt(n)


def renyi(multipliers: list[float], delta: float) -> float:
    """Epsilon by hand: a / (2 z^2) of each release (arXiv 1702.07476, corollary 3), added up, then
    the best order of the conversion of arXiv 2004.00010, proposition 12."""
    total = sum(0.5 / z**2 for z in multipliers)
    orders = np.concatenate([np.arange(1.01, 12, 0.001), np.arange(12, 2000, 0.1)])
    found = (
        total * orders + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    )
    return float(found.min())


@pytest.mark.parametrize(
    "multipliers", [[4.0], [1.0] * 10, [2.0, 1.0, 3.0], [8.0] * 200, [0.8], [20.0] * 7]
)
def test_the_accountant_against_renyi_by_hand(multipliers: list[float]) -> None:
    expected = renyi(multipliers, 1e-5)
    # never less than the best of all orders, of which the accountant tries a few
    assert expected * (1 - 1e-6) <= account(multipliers, 1e-5) <= expected * 1.05


def test_releases_add_up_as_one() -> None:
    # 1/z^2 adds up: 1/2^2 + 1/2^2 = 1/sqrt(2)^2
    assert account([2.0, 2.0], 1e-6) == pytest.approx(account([math.sqrt(2)], 1e-6), rel=1e-9)
    assert account([2.0, 2.0], 1e-6) > account([2.0], 1e-6)


def test_what_nodes_give_away() -> None:
    local = FederationConfig(node_clip=1.0, node_noise=3.0, delta=1e-6)
    # local: 2 C, however many reply
    assert account_nodes(local, [4, 1, 9]) == account([1.5] * 3, 1e-6)
    # a sum of n has the noise of n; who drops out takes its noise away
    secure = dataclasses.replace(local, secure=True)
    assert account_nodes(secure, [4, 9]) == account([6.0, 9.0], 1e-6)
    assert account_nodes(secure, [4, 3]) > account_nodes(secure, [4, 4])


def test_epsilon_counts_who_was_in_the_sum(
    tmp_path: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    images = write_tiny_images(tmp_path / "data", 4, ("a", "b", "c", "d"))
    settings = ("train.rounds=3", "federation.secure=true")
    noise = ("federation.node_clip=0.5", "federation.node_noise=2.0", "federation.delta=1e-4")
    session = open_session(configure(images, tiny_clip, *settings, *noise), tiny_backbone)
    grid = connect(session)

    def lose(node: int, reply: Message) -> Message:
        if node != 11 or grid.messages[-1].content["task"]["round"] != 1:
            return reply
        return Message(Error(code=3, reason="gone"), reply_to=grid.messages[-1])

    grid.change = lose
    records = run(session).records
    assert [r["replies"] for r in records] == [4, 3, 4]
    multipliers = [2.0 * math.sqrt(n) for n in (4, 3, 4)]
    for i, record in enumerate(records):
        assert record["epsilon"] == pytest.approx(account(multipliers[: i + 1], 1e-4))


def test_a_sum_has_the_noise_of_all(
    tmp_path: Path, tiny_clip: Path, tiny_backbone: Backbone
) -> None:
    images = write_tiny_images(tmp_path / "data", 4, ("a", "b", "c", "d"))
    fixed = ("train.rounds=1", "federation.node_clip=0.001", "train.method=full")
    settings = (*fixed, "federation.node_noise=100.0")
    widths = []
    for secure in ("false", "true"):
        config = configure(images, tiny_clip, *settings, f"federation.secure={secure}")
        session = open_session(config, tiny_backbone)
        grid = connect(session)
        done, start = run(session), session.begin().learned
        moved = torch.cat([(done.learned[n] - start[n]).flatten() for n in start])
        assert len(moved) > 10_000
        widths.append(float(moved.double().std()))
        assert "epsilon" in done.records[0]
        assert len(grid.replies) == (16 if secure == "true" else 4)
        assert Encoding.of(config, 4).largest == 16.0
    # 100 x 0.001 each, of four, as a mean
    assert widths == pytest.approx([0.1 / 2, 0.1 / 2], rel=0.03)
