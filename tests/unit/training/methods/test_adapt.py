"""ADAPT-style prompts: a context for each key, one adaptive network for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedapt.data.domains import Labelled
from fedapt.training.methods import Learned
from fedapt.training.methods.adapt import Adapt
from tests.support.methods import (
    DOMAINS,
    KEYS,
    KINDS,
    SIZES,
    Arrays,
    C,
    Gradients,
    M,
    W,
    assert_logits,
    assert_round,
    assert_sizes,
    class_loss_by_hand,
    domain_loss_by_hand,
    draw,
    make_setting,
    mixture_by_hand,
    one_round,
    rows_of,
    text_by_hand,
    to_numpy,
    train_one,
    weights_by_hand,
)


def begun(settings: dict[str, Any], n_keys: int = 2) -> Learned:
    return {
        "contexts": draw(n_keys, *([M, W] if settings else [C, M, W]), seed=1),
        "adaptive_network": draw(n_keys, W, seed=2),
    }


def by_hand(batch: Labelled, key: int) -> Gradients:
    def gradients(x: Arrays) -> tuple[float, Arrays]:
        loss, to_context = class_loss_by_hand(x["contexts"], batch)
        domain_loss, to_network = domain_loss_by_hand(x["adaptive_network"], key, batch)
        return loss + domain_loss, {"contexts": to_context, "adaptive_network": to_network}

    return gradients


@KINDS
def test_a_clients_steps_and_the_aggregate(settings: dict[str, Any]) -> None:
    setting = make_setting(sizes=SIZES, domains=DOMAINS, keys=KEYS, settings=settings)
    assert_round(
        Adapt(setting),
        begun(settings),
        lambda client: by_hand(client.data.load(), client.key),
        owned=["contexts"],
    )


def test_the_images_of_a_client_weigh_within_its_key() -> None:
    setting = make_setting(
        sizes=SIZES, domains=DOMAINS, keys=KEYS, settings={"train.weighting": "samples"}
    )
    method, start = Adapt(setting), begun({})
    replies = [train_one(method, start, client).learned for client in setting.clients]
    found = one_round(method, start).learned
    shared = (4 * replies[1]["contexts"] + 5 * replies[2]["contexts"]) / 9
    torch.testing.assert_close(found["contexts"][1], shared, rtol=0, atol=1e-6)
    assert torch.equal(found["contexts"][0], replies[0]["contexts"])
    network = sum(n * r["adaptive_network"] for n, r in zip(SIZES, replies, strict=True)) / 15
    torch.testing.assert_close(found["adaptive_network"], network, rtol=0, atol=1e-6)


def test_a_key_without_a_client_in_the_round_stays_as_it_was() -> None:
    setting = make_setting(sizes=SIZES, settings={"federation.sampled": 1})
    start = begun({}, n_keys=3)
    found = one_round(Adapt(setting), start).learned
    pairs = zip(found["contexts"], start["contexts"], strict=True)
    assert sum(torch.equal(a, b) for a, b in pairs) == 2
    assert not torch.equal(found["adaptive_network"], start["adaptive_network"])


def test_the_start() -> None:
    method = Adapt(make_setting(sizes=SIZES))
    start = method.begin()
    assert list(start["contexts"].shape) == [3, C, M, W]
    assert list(start["adaptive_network"].shape) == [3, W]
    assert torch.equal(start["contexts"][2], start["contexts"][0])
    assert method.frozen() == {}  # no keys to keep: a context is one


@KINDS
@pytest.mark.parametrize("temperature", [0.01, 2.0])
def test_the_prediction_is_the_mixture_of_the_banks(
    settings: dict[str, Any], temperature: float
) -> None:
    setting = make_setting(sizes=SIZES, settings=settings | {"prompt.temperature": temperature})
    learned, images = begun(settings, n_keys=3), rows_of(setting, range(9))
    x, f = to_numpy(learned), images.features.double().numpy()
    banks = np.stack([text_by_hand(context)[0] for context in x["contexts"]])
    weights = weights_by_hand(f @ x["adaptive_network"].T, temperature)
    method = Adapt(setting)
    np.testing.assert_allclose(method.routing(learned, images.features), weights, atol=1e-5)
    assert_logits(method, learned, images, mixture_by_hand(f, weights, banks), atol=1e-4)


@KINDS
def test_parameters_and_bytes(settings: dict[str, Any]) -> None:
    method = Adapt(make_setting(sizes=SIZES, domains=DOMAINS, keys=KEYS, settings=settings))
    context = M * W * (1 if settings else C)
    # a client receives and sends one of the two contexts
    assert_sizes(method, 2 * context + 2 * W, sent=context + 2 * W)
