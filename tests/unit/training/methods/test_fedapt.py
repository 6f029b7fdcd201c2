"""FedAPT against gradients derived by hand, OpenCLIP's own text tower and plain loops."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedapt.data.domains import Labelled
from fedapt.model.backbone import Backbone
from fedapt.model.prompt import draw_keys
from fedapt.training.methods import Learned
from fedapt.training.methods.base import n_bytes, n_parameters
from fedapt.training.methods.fedapt import FedAPT
from tests.support.methods import (
    Array,
    Arrays,
    C,
    Gradients,
    M,
    W,
    assert_learned,
    by_autograd,
    class_loss_by_hand,
    domain_loss_by_hand,
    draw,
    make_setting,
    mixture_by_hand,
    moved,
    one_round,
    open_clip_text,
    rows_of,
    sgd_by_hand,
    text_by_hand,
    to_numpy,
    train_one,
    weights_by_hand,
)

SHARED = {"prompt.class_specific": False}
KINDS = pytest.mark.parametrize("settings", [{}, SHARED], ids=["a context per class", "shared"])


def begun(settings: dict[str, Any], n_keys: int = 2) -> Learned:
    return {
        "meta_prompt": draw(*([M, W] if settings else [C, M, W]), seed=1),
        "adaptive_network": draw(n_keys, W, seed=2),
    }


def by_hand(batch: Labelled, keys: Tensor, key: int) -> Gradients:
    factor = 1 + keys[key].double().numpy()

    def gradients(x: Arrays) -> tuple[float, Arrays]:
        loss, to_prompt = class_loss_by_hand(x["meta_prompt"] * factor, batch)
        domain_loss, to_network = domain_loss_by_hand(x["adaptive_network"], key, batch)
        found = {"meta_prompt": to_prompt * factor, "adaptive_network": to_network}
        return loss + domain_loss, found

    return gradients


@KINDS
@pytest.mark.parametrize("client", [0, 1])
def test_a_clients_steps(settings: dict[str, Any], client: int) -> None:
    setting = make_setting(settings=settings)
    party, start = setting.clients[client], begun(settings)
    update = train_one(FedAPT(setting), start, party)
    hand = by_hand(party.data.load(), setting.keys, client)
    expected, loss = sgd_by_hand(hand, to_numpy(start), setting.config.train)
    assert_learned(update.learned, expected)
    assert update.loss == pytest.approx(loss, abs=1e-5)
    assert min(moved(update.learned, start).values()) > 0.01
    other = by_hand(party.data.load(), setting.keys, 1 - client)  # another key, another domain
    wrong, _ = sgd_by_hand(other, to_numpy(start), setting.config.train)
    for name, value in update.learned.items():
        assert np.abs(value.numpy() - wrong[name]).max() > 1e-3


@KINDS
def test_a_clients_steps_through_the_whole_text_tower(
    tiny_backbone: Backbone, settings: dict[str, Any]
) -> None:
    setting = make_setting(tiny_backbone, settings={"prompt.context_length": 4} | settings)
    client, method = setting.clients[1], FedAPT(setting)
    start = method.begin()
    update = train_one(method, start, client)
    batch, scale = client.data.load(), tiny_backbone.logit_scale

    def loss(x: dict[str, Tensor]) -> Tensor:
        unit = batch.features / batch.features.norm(dim=-1, keepdim=True)
        prompt = x["meta_prompt"] + x["meta_prompt"] * setting.keys[1]
        text = open_clip_text(tiny_backbone, prompt)
        scores = batch.features @ x["adaptive_network"].T
        domain = torch.ones(len(batch), dtype=torch.int64)
        return cross_entropy(scale * unit @ text.T, batch.labels) + cross_entropy(scores, domain)

    expected, mean = sgd_by_hand(by_autograd(loss), to_numpy(start), setting.config.train)
    assert_learned(update.learned, expected)
    assert update.loss == pytest.approx(mean, abs=1e-5)
    assert min(moved(update.learned, start).values()) > 1e-3


@KINDS
def test_the_start(settings: dict[str, Any]) -> None:
    method = FedAPT(make_setting(sizes=(6, 4, 5), settings=settings))
    start = method.begin()
    prompt, network = start["meta_prompt"], start["adaptive_network"]
    assert list(prompt.shape) == ([M, W] if settings else [C, M, W])
    assert list(network.shape) == [3, W]
    assert 0 < float(prompt.abs().max()) < 0.1  # normal(0, 0.02)
    assert float(network.abs().max()) <= W**-0.5  # uniform(+-1/sqrt(D))
    assert float(network.min()) < 0 < float(network.max())
    other = FedAPT(make_setting(sizes=(6, 4, 5), settings=settings | {"train.seed": 1})).begin()
    for name, value in start.items():
        assert torch.equal(method.begin()[name], value)
        assert not torch.equal(other[name], value)


def test_the_keys_are_frozen_and_of_the_seed() -> None:
    method = FedAPT(make_setting(settings={"train.seed": 5}))
    keys = method.frozen()["keys"]
    assert torch.equal(keys, draw_keys(2, M, W, 5, "normal"))
    assert method.frozen().keys() == {"keys"}
    one_round(method, begun({}))
    assert torch.equal(method.frozen()["keys"], draw_keys(2, M, W, 5, "normal"))


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_the_aggregate_is_the_mean_of_the_clients(weighting: str) -> None:
    # the last two share a key, and so what Q should say
    settings = {"train.weighting": weighting}
    setting = make_setting(sizes=(6, 4, 5), domains=[2, 0, 1], keys=[0, 1, 1], settings=settings)
    start = begun({})
    progress = one_round(FedAPT(setting), start)
    shares = [6, 4, 5] if weighting == "samples" else [1, 1, 1]
    expected: dict[str, Array] = {}
    losses = 0.0
    for client, share in zip(setting.clients, shares, strict=True):
        hand = by_hand(client.data.load(), setting.keys, [0, 1, 1][client.index])
        learned, loss = sgd_by_hand(hand, to_numpy(start), setting.config.train)
        losses += loss * len(client.data)
        for name, value in learned.items():
            expected[name] = expected.get(name, 0) + share / sum(shares) * value
    assert_learned(progress.learned, expected)
    assert progress.records[0]["loss"] == pytest.approx(losses / 15, abs=1e-5)


@KINDS
@pytest.mark.parametrize("temperature", [0.01, 2.0])
def test_the_prediction_is_the_mixture_of_the_banks(
    settings: dict[str, Any], temperature: float
) -> None:
    settings, learned = settings | {"prompt.temperature": temperature}, begun(settings, n_keys=3)
    setting = make_setting(sizes=(6, 4, 5), settings=settings)
    images = rows_of(setting, range(9))
    x, keys = to_numpy(learned), setting.keys.double().numpy()
    banks = np.stack([text_by_hand(x["meta_prompt"] * (1 + key))[0] for key in keys])
    f = images.features.double().numpy()
    weights = weights_by_hand(f @ x["adaptive_network"].T, temperature)
    method = FedAPT(setting)
    np.testing.assert_allclose(method.routing(learned, images.features), weights, atol=1e-5)
    for domain in (0, 2, None):  # a client's domain is no help
        found = method.predictor(learned)(images, domain)
        np.testing.assert_allclose(found, mixture_by_hand(f, weights, banks), rtol=0, atol=1e-4)
    one_hot = float(weights.max(1).min()) > 0.99
    assert one_hot == (temperature == 0.01)


@KINDS
def test_parameters_and_bytes(settings: dict[str, Any]) -> None:
    method = FedAPT(make_setting(sizes=(6, 4, 5), domains=[0, 1, 1], settings=settings))
    start = method.begin()
    values = M * W * (1 if settings else C) + 2 * W
    assert (n_parameters(start), n_bytes(start)) == (values, 4 * values)
    (record,) = one_round(method, start).records
    assert record["bytes_sent"] == 2 * 3 * 4 * values


def test_bytes_of_the_clients_that_take_part() -> None:
    setting = make_setting(sizes=(6, 4, 5), settings={"federation.sampled": 2})
    (record,) = one_round(FedAPT(setting), begun({}, n_keys=3)).records
    assert record["clients"] == 2
    assert record["bytes_sent"] == 2 * 2 * 4 * (C * M * W + 3 * W)


# a class loss under the mean key


@KINDS
@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_class_loss_under_the_mean_key_is_added(
    settings: dict[str, Any], weight: float
) -> None:
    setting = make_setting(settings={**settings, "prompt.mean_key_loss": weight})
    party, start = setting.clients[1], begun(settings)
    update = train_one(FedAPT(setting), start, party)
    batch = party.data.load()
    own, factor = by_hand(batch, setting.keys, 1), 1 + setting.keys.mean(0).double().numpy()

    def gradients(x: Arrays) -> tuple[float, Arrays]:
        loss, found = own(x)
        generic, to_prompt = class_loss_by_hand(x["meta_prompt"] * factor, batch)
        found["meta_prompt"] = found["meta_prompt"] + weight * to_prompt * factor
        return loss + weight * generic, found

    expected, loss = sgd_by_hand(gradients, to_numpy(start), setting.config.train)
    assert_learned(update.learned, expected)
    assert update.loss == pytest.approx(loss, abs=1e-5)
    without, _ = sgd_by_hand(own, to_numpy(start), setting.config.train)
    assert np.abs(update.learned["meta_prompt"].numpy() - without["meta_prompt"]).max() > 1e-3


def test_the_adaptive_network_may_have_a_rate_of_its_own() -> None:
    plain, other = (make_setting(settings={"train.router_lr": rate}) for rate in (0.0, 0.3))
    start = begun({})
    same, faster = (train_one(FedAPT(s), start, s.clients[0]).learned for s in (plain, other))
    assert torch.equal(same["meta_prompt"], faster["meta_prompt"])
    config = other.config.train
    rate = dataclasses.replace(config, lr=0.3)
    hand = by_hand(other.clients[0].data.load(), other.keys, 0)
    expected, _ = sgd_by_hand(hand, to_numpy(start), rate)
    np.testing.assert_allclose(
        faster["adaptive_network"].numpy(), expected["adaptive_network"], rtol=0, atol=5e-6
    )
    assert moved(same, faster)["adaptive_network"] > 0.01
