"""PromptFL against gradients derived by hand, and against OpenCLIP's own text tower."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from fedapt.data.domains import Labelled
from fedapt.model.backbone import Backbone
from fedapt.training.methods import Setting
from fedapt.training.methods.promptfl import PromptFL
from tests.support.methods import (
    KINDS,
    NAMES,
    SCALE,
    SHARED,
    SIZES,
    Array,
    Arrays,
    C,
    Gradients,
    M,
    W,
    assert_learned,
    assert_logits,
    assert_sizes,
    by_autograd,
    class_loss_by_hand,
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


def by_hand(batch: Labelled) -> Gradients:
    def gradients(x: Arrays) -> tuple[float, Arrays]:
        loss, to_context = class_loss_by_hand(x["context"], batch)
        return loss, {"context": to_context}

    return gradients


@KINDS
def test_a_clients_steps(settings: dict[str, Any]) -> None:
    setting = make_setting(settings=settings)
    method, client = PromptFL(setting), setting.clients[1]
    start = {"context": draw(*([M, W] if settings else [C, M, W]), seed=1)}
    update = train_one(method, start, client)
    expected, loss = sgd_by_hand(by_hand(client.data.load()), to_numpy(start), setting.config.train)
    assert_learned(update.learned, expected)
    assert update.loss == pytest.approx(loss, abs=1e-5)
    assert (update.client, update.n_samples) == (1, 4)
    assert min(moved(update.learned, start).values()) > 0.01


@KINDS
def test_a_clients_steps_through_the_whole_text_tower(
    tiny_backbone: Backbone, settings: dict[str, Any]
) -> None:
    setting = make_setting(tiny_backbone, settings={"prompt.context_length": 4} | settings)
    client = setting.clients[0]
    method = PromptFL(setting)
    start = method.begin()
    update = train_one(method, start, client)
    batch, scale = client.data.load(), tiny_backbone.logit_scale

    def loss(x: dict[str, Any]) -> torch.Tensor:
        unit = batch.features / batch.features.norm(dim=-1, keepdim=True)
        text = open_clip_text(tiny_backbone, x["context"])
        return cross_entropy(scale * unit @ text.T, batch.labels)

    expected, mean = sgd_by_hand(by_autograd(loss), to_numpy(start), setting.config.train)
    assert_learned(update.learned, expected)
    assert update.loss == pytest.approx(mean, abs=1e-5)
    assert moved(update.learned, start)["context"] > 1e-3


@KINDS
def test_the_start(settings: dict[str, Any]) -> None:
    method = PromptFL(make_setting(settings=settings))
    context = method.begin()["context"]
    assert list(context.shape) == ([M, W] if settings else [C, M, W])
    assert torch.equal(method.begin()["context"], context)
    assert 0 < float(context.abs().max()) < 0.1  # normal(0, 0.02)
    other = PromptFL(make_setting(settings=settings | {"train.seed": 1}))
    assert not torch.equal(other.begin()["context"], context)


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_the_aggregate_is_the_mean_of_the_clients(weighting: str) -> None:
    setting = make_setting(sizes=SIZES, settings={"train.weighting": weighting})
    start = {"context": draw(C, M, W, seed=1)}
    progress = one_round(PromptFL(setting), start)
    shares = np.array([6, 4, 5] if weighting == "samples" else [1, 1, 1])
    found: list[Array] = []
    for client in setting.clients:
        learned, _ = sgd_by_hand(by_hand(client.data.load()), to_numpy(start), setting.config.train)
        found.append(learned["context"])
    mean = np.einsum("i,icmw->cmw", shares / shares.sum(), np.stack(found))
    assert_learned(progress.learned, {"context": mean})
    assert np.abs(found[0] - found[1]).max() > 0.01  # of different replies


def test_keys_have_no_say() -> None:
    setting, other = make_setting(keys=[0, 1]), make_setting(keys=[1, 0])
    start = {"context": draw(C, M, W, seed=1)}
    found = one_round(PromptFL(setting), start).learned
    assert torch.equal(one_round(PromptFL(other), start).learned["context"], found["context"])
    assert PromptFL(setting).frozen() == {}
    assert PromptFL(setting).routing(start, draw(2, W, seed=3)) is None


@KINDS
def test_the_prediction(settings: dict[str, Any]) -> None:
    setting: Setting = make_setting(settings=settings)
    learned = {"context": draw(*([M, W] if settings else [C, M, W]), seed=1)}
    images = rows_of(setting, [0, 5, 9])
    text, _ = text_by_hand(to_numpy(learned)["context"])
    expected = SCALE * unit_rows(images.features.double().numpy()) @ text.T
    assert_logits(PromptFL(setting), learned, images, expected)


def test_the_prediction_of_a_phrase_is_open_clips(tiny_backbone: Backbone) -> None:
    settings = SHARED | {"prompt.context_length": 4, "prompt.start": "a photo of a"}
    setting = make_setting(tiny_backbone, settings=settings)
    method = PromptFL(setting)
    ids = tiny_backbone.tokenizer([f"a photo of a {name}." for name in NAMES])
    text = tiny_backbone.clip.encode_text(ids, normalize=True)
    images = rows_of(setting, range(8))
    expected = tiny_backbone.logit_scale * normalize(images.features, dim=-1) @ text.T
    found = method.predictor(method.begin())(images, None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_training_after_a_prediction(tiny_backbone: Backbone) -> None:
    method = PromptFL(make_setting(tiny_backbone))
    start = method.begin()
    fresh = PromptFL(make_setting(tiny_backbone))
    method.predictor(start)(rows_of(method.setting, [0]), None)
    found = one_round(method, start).learned["context"]
    assert torch.equal(found, one_round(fresh, start).learned["context"])


@KINDS
def test_parameters_and_bytes(settings: dict[str, Any]) -> None:
    method = PromptFL(make_setting(sizes=SIZES, settings=settings))
    assert_sizes(method, M * W * (1 if settings else C))
