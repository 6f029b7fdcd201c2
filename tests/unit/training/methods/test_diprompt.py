"""DiPrompT-style prompts: a shared context beside one of each key, answering together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedapt.data.domains import Labelled
from fedapt.training.methods import Learned
from fedapt.training.methods.base import n_parameters
from fedapt.training.methods.diprompt import DiPrompt
from tests.support.methods import (
    DOMAINS,
    KEYS,
    KINDS,
    SCALE,
    SIZES,
    Arrays,
    C,
    Gradients,
    M,
    W,
    assert_logits,
    assert_round,
    class_loss_by_hand,
    domain_loss_by_hand,
    draw,
    make_setting,
    rows_of,
    text_by_hand,
    to_numpy,
    unit_rows,
    weights_by_hand,
)


def begun(settings: dict[str, Any], n_keys: int = 2) -> Learned:
    shape = [M, W] if settings else [C, M, W]
    return {
        "context": draw(*shape, seed=3),
        "contexts": draw(n_keys, *shape, seed=1),
        "adaptive_network": draw(n_keys, W, seed=2),
    }


def by_hand(batch: Labelled, key: int) -> Gradients:
    def gradients(x: Arrays) -> tuple[float, Arrays]:
        shared, to_shared = class_loss_by_hand(x["context"], batch)
        own, to_own = class_loss_by_hand(x["contexts"], batch)
        domain, to_network = domain_loss_by_hand(x["adaptive_network"], key, batch)
        return shared + own + domain, {
            "context": to_shared,
            "contexts": to_own,
            "adaptive_network": to_network,
        }

    return gradients


@KINDS
def test_a_clients_steps_and_the_aggregate(settings: dict[str, Any]) -> None:
    setting = make_setting(sizes=SIZES, domains=DOMAINS, keys=KEYS, settings=settings)
    assert_round(
        DiPrompt(setting),
        begun(settings),
        lambda client: by_hand(client.data.load(), client.key),
        owned=["contexts"],
    )


def test_the_start() -> None:
    method = DiPrompt(make_setting(sizes=SIZES))
    start = method.begin()
    assert list(start["contexts"].shape) == [3, C, M, W]
    assert torch.equal(start["contexts"][2], start["context"])
    assert n_parameters(start) == 4 * C * M * W + 3 * W
    assert method.frozen() == {}


@KINDS
@pytest.mark.parametrize("temperature", [0.01, 2.0])
def test_the_prediction_is_half_shared_and_half_routed(
    settings: dict[str, Any], temperature: float
) -> None:
    setting = make_setting(sizes=SIZES, settings=settings | {"prompt.temperature": temperature})
    learned, images = begun(settings, n_keys=3), rows_of(setting, range(9))
    x, f = to_numpy(learned), images.features.double().numpy()
    weights = weights_by_hand(f @ x["adaptive_network"].T, temperature)
    banks = np.stack([text_by_hand(context)[0] for context in x["contexts"]])
    shared, _ = text_by_hand(x["context"])
    mixed = (shared + np.einsum("in,ncd->icd", weights, banks)) / 2  # of no unit length
    expected = SCALE * np.einsum("id,icd->ic", unit_rows(f), mixed)
    method = DiPrompt(setting)
    np.testing.assert_allclose(method.routing(learned, images.features), weights, atol=1e-5)
    assert_logits(method, learned, images, expected, atol=1e-4)
    fusable = method.fuse(learned, ("a", "b", "c"))
    assert fusable.names == ("a", "b", "c")
    np.testing.assert_allclose(fusable.exact(images.features), expected, rtol=0, atol=1e-4)
