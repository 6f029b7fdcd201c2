"""CoCoOp against gradients derived by hand, and against prompts encoded image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedapt.core.config import Config
from fedapt.data.domains import Labelled
from fedapt.data.partition import Client
from fedapt.model.backbone import Backbone
from fedapt.training.methods import Learned
from fedapt.training.methods.base import Objective, n_bytes, n_parameters
from fedapt.training.methods.cocoop import CoCoOp
from tests.support.methods import (
    OFFSETS,
    SCALE,
    WEIGHTS,
    Array,
    Arrays,
    C,
    Gradients,
    M,
    W,
    assert_learned,
    by_autograd,
    cross_entropy_by_hand,
    draw,
    make_config,
    make_setting,
    moved,
    one_round,
    open_clip_text,
    rows_of,
    sgd_by_hand,
    to_numpy,
    train_one,
    unit_rows,
)

SHARED = {"prompt.class_specific": False}
HIDDEN = 4
BEGUN: Learned = {
    "context": draw(M, W, seed=1),
    "meta_net.0.weight": draw(HIDDEN, W, seed=2),
    "meta_net.0.bias": 0.3 * draw(HIDDEN, seed=3),
    "meta_net.1.weight": draw(W, HIDDEN, seed=4),
    "meta_net.1.bias": draw(W, seed=5),
}


def forward_by_hand(x: Arrays, unit: Array) -> tuple[Array, Array, Array, Array]:
    """h [n, H], sums u and texts t [n, C, W], logits [n, C]."""
    hidden = np.maximum(unit @ x["meta_net.0.weight"].T + x["meta_net.0.bias"], 0)
    shift = hidden @ x["meta_net.1.weight"].T + x["meta_net.1.bias"]
    prompts = x["context"] + shift[:, None]  # [n, M, W]
    summed = np.einsum("m,nmw->nw", WEIGHTS.double().numpy(), prompts)[:, None]
    summed = summed + OFFSETS.double().numpy()
    text = unit_rows(summed)
    return hidden, summed, text, SCALE * np.einsum("nw,ncw->nc", unit, text)


def by_hand(batch: Labelled) -> Gradients:
    unit = unit_rows(batch.features.double().numpy())

    def gradients(x: Arrays) -> tuple[float, Arrays]:
        hidden, summed, text, logits = forward_by_hand(x, unit)
        loss, to_logits = cross_entropy_by_hand(logits, batch.labels.numpy())
        to_text = SCALE * to_logits[..., None] * unit[:, None]
        to_sum = to_text - (to_text * text).sum(-1, keepdims=True) * text
        to_sum = (to_sum / np.linalg.norm(summed, axis=-1, keepdims=True)).sum(1)  # [n, W]
        to_prompts = WEIGHTS.double().numpy()[:, None] * to_sum[:, None]
        to_shift = to_prompts.sum(1)
        to_hidden = to_shift @ x["meta_net.1.weight"] * (hidden > 0)
        return loss, {
            "context": to_prompts.sum(0),
            "meta_net.0.weight": to_hidden.T @ unit,
            "meta_net.0.bias": to_hidden.sum(0),
            "meta_net.1.weight": to_shift.T @ hidden,
            "meta_net.1.bias": to_shift.sum(0),
        }

    return gradients


@pytest.mark.parametrize("max_prompts", [512, 4 * C, 1], ids=["at once", "in parts", "one by one"])
def test_a_clients_steps_and_the_aggregate(
    monkeypatch: pytest.MonkeyPatch, max_prompts: int
) -> None:
    monkeypatch.setattr("fedapt.training.methods.cocoop._MAX_PROMPTS", max_prompts)
    setting = make_setting(settings=SHARED)
    method = CoCoOp(setting)
    replies = []
    for client in setting.clients:
        hand = by_hand(client.data.load())
        expected, loss = sgd_by_hand(hand, to_numpy(BEGUN), setting.config.train)
        update = train_one(method, BEGUN, client)
        assert_learned(update.learned, expected)
        assert update.loss == pytest.approx(loss, abs=1e-5)
        assert min(moved(update.learned, BEGUN).values()) > 0.01
        replies.append(expected)
    mean = {name: (replies[0][name] + replies[1][name]) / 2 for name in BEGUN}
    assert_learned(one_round(method, BEGUN).learned, mean)
    unit = unit_rows(setting.clients[0].data.load().features.double().numpy())
    hidden, *_ = forward_by_hand(to_numpy(BEGUN), unit)
    assert 0 < (hidden > 0).mean() < 1  # both sides of the relu


def settled(**settings: object) -> Config:
    return CoCoOp.resolve(make_config({k.replace("__", "."): v for k, v in settings.items()}))


def one_by_one(backbone: Backbone, x: dict[str, Tensor], features: Tensor) -> Tensor:
    """Logits of one image after the other, each of its prompts through all 77 tokens."""
    rows = []
    for f in features:
        unit = f / f.norm()
        hidden = (x["meta_net.0.weight"] @ unit + x["meta_net.0.bias"]).clamp(min=0)
        shift = x["meta_net.1.weight"] @ hidden + x["meta_net.1.bias"]
        text = open_clip_text(backbone, torch.stack([token + shift for token in x["context"]]))
        rows.append(backbone.logit_scale * text @ unit)
    return torch.stack(rows)


def test_a_clients_steps_with_every_prompt_encoded_alone(tiny_backbone: Backbone) -> None:
    setting = make_setting(tiny_backbone, config=settled())
    method, client = CoCoOp(setting), setting.clients[0]
    start = method.begin()
    update = train_one(method, start, client)
    batch = client.data.load()

    def loss(x: dict[str, Tensor]) -> Tensor:
        return cross_entropy(one_by_one(tiny_backbone, x, batch.features), batch.labels)

    expected, mean = sgd_by_hand(by_autograd(loss), to_numpy(start), setting.config.train)
    assert_learned(update.learned, expected)
    assert update.loss == pytest.approx(mean, abs=1e-5)
    assert min(moved(update.learned, start).values()) > 1e-3


def test_the_prediction_is_that_of_every_image_alone(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedapt.training.methods.cocoop._MAX_PROMPTS", 30 * C)  # three parts
    setting = make_setting(tiny_backbone, sizes=(30, 40), config=settled())
    method = CoCoOp(setting)
    learned = {n: 3 * t for n, t in method.begin().items()}
    images = rows_of(setting, range(70))
    found = method.predictor(learned)(images, None)
    expected = one_by_one(tiny_backbone, learned, images.features)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    without = learned | {"meta_net.1.weight": torch.zeros(32, 2)}
    shift = one_by_one(tiny_backbone, without, images.features) - expected
    assert float(shift.abs().max()) > 1e-2  # the image has a say in its prompt
    assert method.routing(learned, images.features) is None


def test_the_start_is_the_phrase(tiny_backbone: Backbone) -> None:
    method = CoCoOp(make_setting(tiny_backbone, config=settled()))
    start = method.begin()
    ids = torch.tensor(tiny_backbone.tokenizer.encode("a photo of a"))
    assert torch.equal(start["context"], tiny_backbone.clip.token_embedding(ids))
    shapes = {name: list(tensor.shape) for name, tensor in start.items()}
    assert shapes == {
        "context": [4, 32],
        "meta_net.0.weight": [2, 32],  # D / 16
        "meta_net.0.bias": [2],
        "meta_net.1.weight": [32, 2],
        "meta_net.1.bias": [32],
    }
    for name, bound in (("meta_net.0", 32**-0.5), ("meta_net.1", 2**-0.5)):
        for part in ("weight", "bias"):
            largest = float(start[f"{name}.{part}"].abs().max())
            assert 0.3 * bound < largest <= bound
    again = method.begin()
    assert all(torch.equal(again[name], tensor) for name, tensor in start.items())


def test_what_it_settles() -> None:
    config = settled()
    assert (config.prompt.context_length, config.prompt.class_specific) == (4, False)
    assert config.prompt.start == "a photo of a"
    assert (config.train.images_per_round, config.train.batch_size) == (32, 32)
    assert config.train.lr == make_config().train.lr
    config = settled(train__images_per_round=10, train__batch_size=8)
    assert (config.train.images_per_round, config.train.batch_size) == (10, 8)


def test_a_client_takes_no_more_images_than_settled(tiny_backbone: Backbone) -> None:
    config = settled(train__images_per_round=5, train__local_epochs=1)
    setting = make_setting(tiny_backbone, config=config)
    seen = []

    class Counted(CoCoOp):
        def objective(self, start: Learned, client: Client, round_number: int) -> Objective:
            loss = super().objective(start, client, round_number)
            return lambda learned, batch: seen.append(len(batch)) or loss(learned, batch)  # type: ignore[func-returns-value]

    update = train_one(Counted(setting), CoCoOp(setting).begin(), setting.clients[0])
    assert seen == [5]
    assert update.n_samples == len(setting.clients[0].data) == 6  # what it may weigh by


def test_parameters_and_bytes(tiny_backbone: Backbone) -> None:
    method = CoCoOp(make_setting(tiny_backbone, config=settled()))
    start = method.begin()
    values = 4 * 32 + 2 * 32 + 2 + 32 * 2 + 32
    assert (n_parameters(start), n_bytes(start)) == (values, 4 * values)
    (record,) = one_round(method, start).records
    assert record["bytes_sent"] == 2 * 2 * 4 * values
