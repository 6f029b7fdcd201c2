"""FedTPG's network against plain code, and through OpenCLIP's own text tower."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedapt.model.backbone import Backbone
from fedapt.training.methods.base import n_parameters
from fedapt.training.methods.fedtpg import FedTPG
from tests.support.methods import (
    SCALE,
    Array,
    M,
    W,
    assert_learned,
    assert_logits,
    by_autograd,
    draw,
    make_setting,
    moved,
    one_round,
    open_clip_text,
    rows_of,
    sgd_by_hand,
    text_by_hand,
    to_numpy,
    train_one,
    unit_rows,
)


def context_by_torch(x: dict[str, Tensor], text: Tensor) -> Tensor:
    """Queries that attend to the names, then a residual block, of torch's own modules."""
    width = x["queries"].shape[1]
    keys, values = text @ x["attention.keys"].T, text @ x["attention.values"].T
    read = nn.functional.scaled_dot_product_attention(x["queries"][None], keys[None], values[None])
    y = x["queries"] + read[0]
    norm = nn.LayerNorm(width, elementwise_affine=False)
    hidden = nn.GELU()(norm(y) @ x["mlp.0.weight"].T + x["mlp.0.bias"])
    return y + hidden @ x["mlp.1.weight"].T + x["mlp.1.bias"]


def test_the_context_by_hand() -> None:
    setting = make_setting()
    start = {name: draw(*t.shape, seed=i) for i, (name, t) in enumerate(begun(setting).items())}
    x, text = to_numpy(start), setting.zero_shot.double().numpy()
    scores = x["queries"] @ (text @ x["attention.keys"].T).T / math.sqrt(W)
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    y = x["queries"] + shares @ text @ x["attention.values"].T
    normed = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-5)
    z = normed @ x["mlp.0.weight"].T + x["mlp.0.bias"]
    hidden: Array = z * 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    expected = y + hidden @ x["mlp.1.weight"].T + x["mlp.1.bias"]
    np.testing.assert_allclose(FedTPG(setting).context(start), expected, rtol=0, atol=1e-5)


def begun(setting: object) -> dict[str, Tensor]:
    return FedTPG(setting).begin()  # type: ignore[arg-type]


def test_a_clients_steps_through_the_whole_text_tower(tiny_backbone: Backbone) -> None:
    setting = make_setting(tiny_backbone, settings={"prompt.context_length": 4})
    method, client = FedTPG(setting), setting.clients[0]
    start = method.begin()
    update = train_one(method, start, client)
    batch, scale = client.data.load(), tiny_backbone.logit_scale

    def loss(x: dict[str, Tensor]) -> Tensor:
        unit = batch.features / batch.features.norm(dim=-1, keepdim=True)
        text = open_clip_text(tiny_backbone, context_by_torch(x, setting.zero_shot))
        return cross_entropy(scale * unit @ text.T, batch.labels)

    expected, mean = sgd_by_hand(by_autograd(loss), to_numpy(start), setting.config.train)
    assert_learned(update.learned, expected, atol=2e-5)
    assert update.loss == pytest.approx(mean, abs=1e-5)
    assert moved(update.learned, start)["queries"] > 1e-4


def test_the_start_and_the_aggregate() -> None:
    setting = make_setting(sizes=(6, 4))
    method = FedTPG(setting)
    start = method.begin()
    joint = W
    assert n_parameters(start) == M * W + 2 * W * joint + 2 * (W * W + W)
    assert 0 < float(method.context(start).abs().max()) < 0.2  # of the size of tokens
    assert all(torch.equal(method.begin()[name], value) for name, value in start.items())
    other = FedTPG(make_setting(settings={"train.seed": 1})).begin()
    assert not torch.equal(other["queries"], start["queries"])
    replies = [train_one(method, start, client).learned for client in setting.clients]
    found = one_round(method, start).learned
    for name in start:
        mean = (replies[0][name] + replies[1][name]) / 2
        torch.testing.assert_close(found[name], mean, rtol=0, atol=1e-6)


def test_the_prediction() -> None:
    setting = make_setting()
    method = FedTPG(setting)
    learned = {name: draw(*t.shape, seed=i) for i, (name, t) in enumerate(method.begin().items())}
    images = rows_of(setting, [0, 5, 9])
    text, _ = text_by_hand(method.context(learned).double().numpy())
    expected = SCALE * unit_rows(images.features.double().numpy()) @ text.T
    assert_logits(method, learned, images, expected)
    fusable = method.fuse(learned, ("a", "b"))
    assert fusable.names == ("all",)
    np.testing.assert_allclose(fusable.head.logits(images.features), expected, rtol=0, atol=1e-5)
