"""The linear probe against softmax regression written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedapt.data.domains import Labelled
from fedapt.training.methods.base import n_bytes, n_parameters
from fedapt.training.methods.linear_probe import LinearProbe
from tests.support.methods import (
    SCALE,
    Arrays,
    C,
    Gradients,
    W,
    assert_learned,
    cross_entropy_by_hand,
    draw,
    make_setting,
    moved,
    one_round,
    rows_of,
    sgd_by_hand,
    to_numpy,
    train_one,
    unit_rows,
)


def by_hand(batch: Labelled) -> Gradients:
    unit = unit_rows(batch.features.double().numpy())

    def gradients(x: Arrays) -> tuple[float, Arrays]:
        logits = SCALE * unit @ x["weight"].T + x["bias"]
        loss, to_logits = cross_entropy_by_hand(logits, batch.labels.numpy())
        return loss, {"weight": SCALE * to_logits.T @ unit, "bias": to_logits.sum(0)}

    return gradients


def test_a_clients_steps_and_the_aggregate() -> None:
    setting = make_setting()
    method = LinearProbe(setting)
    start = {"weight": draw(C, W, seed=1), "bias": draw(C, seed=2)}
    replies = []
    for client in setting.clients:
        hand = by_hand(client.data.load())
        expected, loss = sgd_by_hand(hand, to_numpy(start), setting.config.train)
        update = train_one(method, start, client)
        assert_learned(update.learned, expected)
        assert update.loss == pytest.approx(loss, abs=1e-5)
        assert min(moved(update.learned, start).values()) > 0.01
        replies.append(expected)
    mean = {name: (replies[0][name] + replies[1][name]) / 2 for name in start}
    assert_learned(one_round(method, start).learned, mean)


def test_it_starts_without_an_opinion() -> None:
    setting = make_setting(settings={"train.local_epochs": 1})
    method = LinearProbe(setting)
    start = method.begin()
    assert {n: list(t.shape) for n, t in start.items()} == {"weight": [C, W], "bias": [C]}
    assert not any(bool(t.any()) for t in start.values())
    assert one_round(method, start).records[0]["loss"] == pytest.approx(math.log(C))


def test_the_prediction() -> None:
    setting = make_setting()
    learned, images = (
        {"weight": draw(C, W, seed=1), "bias": draw(C, seed=2)},
        rows_of(setting, range(9)),
    )
    unit = unit_rows(images.features.double().numpy())
    x = to_numpy(learned)
    for domain in (0, None):
        found = LinearProbe(setting).predictor(learned)(images, domain)
        expected = SCALE * unit @ x["weight"].T + x["bias"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert LinearProbe(setting).routing(learned, images.features) is None


def test_parameters_and_bytes() -> None:
    method = LinearProbe(make_setting())
    start, values = method.begin(), C * W + C
    assert (n_parameters(start), n_bytes(start)) == (values, 4 * values)
    (record,) = one_round(method, start).records
    assert record["bytes_sent"] == 2 * 2 * 4 * values
