"""Local only: every client for itself, and nothing on the wire."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedapt.data.domains import Labelled
from fedapt.training.evaluate import accuracy
from fedapt.training.methods.base import n_bytes, n_parameters
from fedapt.training.methods.local import Local
from tests.support.methods import (
    KINDS,
    SCALE,
    SIZES,
    Arrays,
    C,
    Gradients,
    M,
    W,
    assert_learned,
    class_loss_by_hand,
    draw,
    make_setting,
    one_round,
    rows_of,
    sgd_by_hand,
    text_by_hand,
    to_numpy,
    train_one,
    unit_rows,
)

DOMAINS = [0, 1, 1]


def by_hand(batch: Labelled) -> Gradients:
    def gradients(x: Arrays) -> tuple[float, Arrays]:
        loss, to_context = class_loss_by_hand(x["contexts"], batch)
        return loss, {"contexts": to_context}

    return gradients


@KINDS
def test_a_clients_steps_and_the_aggregate(settings: dict[str, Any]) -> None:
    setting = make_setting(sizes=SIZES, domains=DOMAINS, settings=settings)
    method = Local(setting)
    start = {"contexts": draw(3, *([M, W] if settings else [C, M, W]), seed=1)}
    progress = one_round(method, start)
    for client in setting.clients:
        own = {"contexts": start["contexts"][client.index]}
        expected, loss = sgd_by_hand(
            by_hand(client.data.load()), to_numpy(own), setting.config.train
        )
        update = train_one(method, start, client)
        assert_learned(update.learned, expected)
        assert update.loss == pytest.approx(loss, abs=1e-5)
        # not averaged, bit for bit
        found = progress.learned["contexts"][client.index]
        assert torch.equal(found, update.learned["contexts"])
        assert not torch.equal(found, own["contexts"])


def test_all_begin_with_the_same_context() -> None:
    contexts = Local(make_setting(sizes=SIZES, domains=DOMAINS)).begin()["contexts"]
    assert list(contexts.shape) == [3, C, M, W]
    assert torch.equal(contexts[1], contexts[0])
    assert torch.equal(contexts[2], contexts[0])
    assert 0 < float(contexts.abs().max()) < 0.1


def test_a_client_outside_the_round_stays_as_it_was() -> None:
    setting = make_setting(sizes=SIZES, domains=DOMAINS, settings={"federation.sampled": 2})
    start = {"contexts": draw(3, C, M, W, seed=1)}
    found = one_round(Local(setting), start).learned["contexts"]
    same = [torch.equal(a, b) for a, b in zip(found, start["contexts"], strict=True)]
    assert sum(same) == 1
    assert torch.equal(start["contexts"], draw(3, C, M, W, seed=1))


@KINDS
def test_the_prediction_is_that_of_the_domains_own_clients(settings: dict[str, Any]) -> None:
    setting = make_setting(sizes=SIZES, domains=DOMAINS, settings=settings)
    learned = {"contexts": draw(3, *([M, W] if settings else [C, M, W]), seed=1)}
    images = rows_of(setting, range(12))
    unit = unit_rows(images.features.double().numpy())
    models = np.stack([SCALE * unit @ text_by_hand(v)[0].T for v in to_numpy(learned)["contexts"]])
    predict = Local(setting).predictor(learned)
    for domain, own in {0: [0], 1: [1, 2], None: [0, 1, 2]}.items():
        found = predict(images, domain)
        assert found.shape == (len(own), 12, C)
        np.testing.assert_allclose(found, models[own], rtol=0, atol=1e-5)
        right = (models[own].argmax(-1) == images.labels.numpy()).mean()
        assert accuracy(found, images.labels) == pytest.approx(right)


@KINDS
def test_parameters_and_no_bytes(settings: dict[str, Any]) -> None:
    method = Local(make_setting(sizes=SIZES, domains=DOMAINS, settings=settings))
    start, values = method.begin(), M * W * (1 if settings else C)
    assert (n_parameters(start), n_bytes(start)) == (3 * values, 4 * 3 * values)
    assert n_parameters(method.share(start, method.setting.clients[1])) == values
    (record,) = one_round(method, start).records
    assert record["bytes_sent"] == 0
    assert method.routing(start, draw(2, W, seed=3)) is None
