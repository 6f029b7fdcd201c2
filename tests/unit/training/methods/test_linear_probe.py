"""The linear probe against softmax regression written out."""

from __future__ import annotations

import math

import pytest

from fedapt.data.domains import Labelled
from fedapt.training.methods import Learned
from fedapt.training.methods.linear_probe import LinearProbe
from tests.support.methods import (
    SCALE,
    Arrays,
    C,
    Gradients,
    W,
    assert_logits,
    assert_round,
    assert_sizes,
    cross_entropy_by_hand,
    draw,
    make_setting,
    one_round,
    rows_of,
    to_numpy,
    unit_rows,
)

BEGUN: Learned = {"weight": draw(C, W, seed=1), "bias": draw(C, seed=2)}


def by_hand(batch: Labelled) -> Gradients:
    unit = unit_rows(batch.features.double().numpy())

    def gradients(x: Arrays) -> tuple[float, Arrays]:
        logits = SCALE * unit @ x["weight"].T + x["bias"]
        loss, to_logits = cross_entropy_by_hand(logits, batch.labels.numpy())
        return loss, {"weight": SCALE * to_logits.T @ unit, "bias": to_logits.sum(0)}

    return gradients


def test_a_clients_steps_and_the_aggregate() -> None:
    method = LinearProbe(make_setting())
    assert_round(method, BEGUN, lambda client: by_hand(client.data.load()))


def test_it_starts_without_an_opinion() -> None:
    setting = make_setting(settings={"train.local_epochs": 1})
    method = LinearProbe(setting)
    start = method.begin()
    assert {n: list(t.shape) for n, t in start.items()} == {"weight": [C, W], "bias": [C]}
    assert not any(bool(t.any()) for t in start.values())
    assert one_round(method, start).records[0]["loss"] == pytest.approx(math.log(C))


def test_the_prediction() -> None:
    setting = make_setting()
    method, images, x = LinearProbe(setting), rows_of(setting, range(9)), to_numpy(BEGUN)
    unit = unit_rows(images.features.double().numpy())
    assert_logits(method, BEGUN, images, SCALE * unit @ x["weight"].T + x["bias"])
    assert method.routing(BEGUN, images.features) is None


def test_parameters_and_bytes() -> None:
    assert_sizes(LinearProbe(make_setting()), C * W + C)
