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
from fedapt.federation.flower.privacy import clip_and_noise, find_multiplier
from fedapt.federation.flower.secure.encoding import Encoding
from fedapt.model.backbone import Backbone
from fedapt.training.client import ClientUpdate
from fedapt.training.methods import Learned
from fedapt.training.privacy import find_epsilon
from tests.support.nodes import configure, connect, open_session, run
from tests.support.tiny import write_tiny_images


def of(a: list[float], b: float) -> ClientUpdate:
    return ClientUpdate(2, {"a": torch.tensor(a), "b": torch.tensor([b])}, 5, 0.5)


def add(
    update: ClientUpdate, start: Learned, config: FederationConfig, secret: bytes = bytes(32)
) -> ClientUpdate:
    return clip_and_noise(update, start, config, secret)


START = {"a": torch.tensor([10.0, 0.0]), "b": torch.tensor([0.0])}


def test_a_long_update_is_shortened_as_one() -> None:
    # (2, 3, 6) has length 7
    found = add(of([12.0, 3.0], 6.0), START, FederationConfig(node_clip=3.5))
    assert found.learned["a"].tolist() == pytest.approx([11.0, 1.5])
    assert found.learned["b"].tolist() == [3.0]
    assert (found.client, found.n_samples, found.loss) == (2, 5, 0.5)
    short = of([12.0, 3.0], 6.0)
    assert add(short, START, FederationConfig()) is short
    for config in (FederationConfig(node_clip=7.5), FederationConfig(node_clip=7.0)):
        kept = add(short, START, config)
        assert all(torch.equal(kept.learned[n], short.learned[n]) for n in START)
    still = add(ClientUpdate(0, START, 1, 0.0), START, FederationConfig(node_clip=1.0))
    assert all(torch.equal(still.learned[n], START[n]) for n in START)


def test_noise_is_normal_and_new_for_each_start_and_update() -> None:
    n = 100_000
    start = {"x": torch.full((n // 2, 2), 3.0)}
    still = ClientUpdate(0, start, 1, 0.0)
    moved = ClientUpdate(0, {"x": start["x"] + 2.0**-20}, 1, 0.0)
    config = FederationConfig(node_clip=2.0, node_noise=0.25)
    noise, again = (add(still, start, config, bytes([i] * 32)).learned["x"] - 3.0 for i in (0, 1))
    # asked for the same update once more, a node has nothing new to tell
    assert torch.equal(add(still, start, config).learned["x"] - 3.0, noise)
    other = add(moved, start, config).learned["x"] - 3.0
    assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 5 / math.sqrt(n)
    other = add(moved, moved.learned, config).learned["x"] - 3.0
    assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 5 / math.sqrt(n)
    assert noise.shape == (n // 2, 2)
    assert not (noise == again).any(dim=1).all()
    values = np.sort(noise.numpy().ravel() / 0.5)
    # Kolmogorov-Smirnov: sqrt(n) times the largest gap is above 2.2 once in 10^4
    exact = 0.5 * (1 + torch.erf(torch.from_numpy(values).double() / math.sqrt(2)).numpy())
    assert abs(exact - (np.arange(n) + 0.5) / n).max() * math.sqrt(n) < 2.2
    assert abs(np.corrcoef(noise.ravel(), again.ravel())[0, 1]) < 5 / math.sqrt(n)


def test_what_nodes_give_away() -> None:
    local = FederationConfig(node_clip=1.0, node_noise=3.0)
    # local: 2 C, however many reply
    assert [find_multiplier(local, n) for n in (4, 1, 9)] == [1.5, 1.5, 1.5]
    # a sum of n has the noise of n; who drops out takes its noise away
    secure = dataclasses.replace(local, secure=True)
    assert [find_multiplier(secure, n) for n in (4, 9)] == [6.0, 9.0]


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
        assert record["epsilon"] == pytest.approx(find_epsilon(multipliers[: i + 1], 1e-4))


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
