"""FedAPT without labels: gradients by hand, brute force, and labels that nobody reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedapt.core.seeds import child_seed
from fedapt.data.domains import ImageSet, Labelled
from fedapt.data.partition import Client
from fedapt.model.backbone import Backbone
from fedapt.training.client import draw_batches
from fedapt.training.methods import Learned, Setting
from fedapt.training.methods.base import n_bytes, n_parameters
from fedapt.training.methods.fedapt import FedAPT
from fedapt.training.methods.unsupervised import UnsupervisedFedAPT, agreement_loss, find_neighbours
from tests.support.methods import (
    SCALE,
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
    make_config,
    make_setting,
    moved,
    one_round,
    open_clip_text,
    rows_of,
    sgd_by_hand,
    softmax,
    text_by_hand,
    to_numpy,
    train_one,
    unit_rows,
)

WARM_UP = 3
SETTINGS: dict[str, Any] = {
    "prompt.class_specific": False,
    "unsupervised.warm_up_rounds": WARM_UP,
    "unsupervised.confidence": 0.8,
    "unsupervised.views": 2,
    "unsupervised.neighbours": 3,
    "train.lr": 0.05,
}
BEGUN: Learned = {"meta_prompt": draw(M, W, seed=1), "adaptive_network": draw(2, W, seed=2)}
SIZES = (12, 8)


class Views:
    """Features of views by row of the table, and which were asked for."""

    def __init__(self, width: int = W) -> None:
        self.features, self.asked = 3 * draw(2, 30, width, seed=21), list[int]()

    def __call__(self, images: ImageSet, view: int) -> Tensor:
        self.asked.append(view)
        return self.features[view][images.rows]


def make(backbone: Backbone | None = None, views: Views | None = None, **more: Any) -> Setting:
    settings = SETTINGS | more.pop("settings", {})
    return make_setting(backbone, SIZES, settings=settings, views=views or Views(), **more)


# the losses


def agreement_by_loops(logits: Array, own: Array, nearest: Array, dispersion: float) -> float:
    p, n = softmax(logits), len(logits)
    soft = near = together = 0.0
    for i in range(n):
        soft -= sum(own[i, c] * np.log(p[i, c]) for c in range(C)) / n
        for b in nearest[i]:
            near += sum(b[c] * np.log(b[c] / p[i, c]) for c in range(C)) / (n * len(nearest[i]))
        together += sum(p[i] @ p[k] for k in range(n) if k != i)
    return float(soft + near + (dispersion * together / (n * (n - 1)) if n > 1 else 0.0))


@pytest.mark.parametrize("n", [1, 2, 9])
@pytest.mark.parametrize("k", [0, 1, 4])
@pytest.mark.parametrize("dispersion", [0.0, 0.5])
def test_the_loss_of_agreement_is_that_of_loops(n: int, k: int, dispersion: float) -> None:
    logits, own = 2 * draw(n, C, seed=31), draw(n, C, seed=32).softmax(-1)
    nearest = (2 * draw(n, k, C, seed=33)).softmax(-1)
    found = agreement_loss(logits, own, nearest, dispersion)
    arrays = (t.double().numpy() for t in (logits, own, nearest))
    assert float(found) == pytest.approx(agreement_by_loops(*arrays, dispersion), abs=1e-5)


def test_a_bank_with_zeros_is_no_nan() -> None:
    bank = torch.eye(C)
    logits = (8 * torch.eye(C)).requires_grad_()
    loss = agreement_loss(logits, bank, bank[:, None], 0.5)
    loss.backward()
    assert bool(loss.isfinite())
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def neighbours_by_loops(features: Array, count: int) -> list[list[int]]:
    unit = unit_rows(features)
    found = []
    for i in range(len(unit)):
        others = [j for j in range(len(unit)) if j != i]
        found.append(sorted(others, key=lambda j: -float(unit[i] @ unit[j]))[:count])
    return found


@pytest.mark.parametrize("block", [1, 4, 7, 1024])
@pytest.mark.parametrize(("n", "count"), [(20, 5), (20, 1), (4, 5), (2, 5)])
def test_neighbours_are_those_of_loops(
    monkeypatch: pytest.MonkeyPatch, block: int, n: int, count: int
) -> None:
    monkeypatch.setattr("fedapt.training.methods.unsupervised._BLOCK", block)
    # of very different lengths, which must not matter
    features = draw(n, W, seed=41) * torch.arange(1, n + 1)[:, None] ** 2
    found = find_neighbours(features, count)
    assert found.tolist() == neighbours_by_loops(features.double().numpy(), count)


def test_an_equal_image_is_a_neighbour_and_the_image_itself_is_not() -> None:
    features = draw(6, W, seed=41)
    features[4] = 2 * features[1]
    found = find_neighbours(features, 2)
    assert found[4, 0] == 1
    assert found[1, 0] == 4
    assert not (found == torch.arange(6)[:, None]).any()


def test_an_image_alone_has_no_neighbours() -> None:
    assert find_neighbours(draw(1, W, seed=41), 5).shape == (1, 0)


# the warm-up


def pseudo_labels(setting: Setting, batch: Labelled) -> tuple[Array, Array]:
    """Best class of zero-shot CLIP on the images themselves, and its probability."""
    unit = unit_rows(batch.features.double().numpy())
    p = softmax(SCALE * unit @ setting.zero_shot.double().numpy().T)
    return p.argmax(1), p.max(1)


def add_domain_loss(
    loss: float, to_prompt: Array, x: Arrays, factor: Array, key: int, batch: Labelled
) -> tuple[float, Arrays]:
    domain_loss, to_network = domain_loss_by_hand(x["adaptive_network"], key, batch)
    found = {"meta_prompt": to_prompt * factor, "adaptive_network": to_network}
    return loss + domain_loss, found


def warm_up_by_hand(setting: Setting, client: Client, view: Tensor) -> Gradients:
    batch = client.data.load()
    factor = 1 + setting.keys[client.key].double().numpy()
    label, probability = pseudo_labels(setting, batch)
    sure = torch.from_numpy(probability > 0.8)
    assert 1 < int(sure.sum()) < len(batch)
    seen = Labelled(view[batch.rows][sure], torch.from_numpy(label)[sure], batch.rows[sure])

    def gradients(x: Arrays) -> tuple[float, Arrays]:
        loss, to_prompt = class_loss_by_hand(x["meta_prompt"] * factor, seen)
        return add_domain_loss(loss, to_prompt, x, factor, client.key, batch)

    return gradients


@pytest.mark.parametrize("client", [0, 1])
@pytest.mark.parametrize("number", range(WARM_UP))
def test_a_clients_steps_in_the_warm_up(client: int, number: int) -> None:
    views = Views()
    setting = make(views=views)
    party = setting.clients[client]
    update = train_one(UnsupervisedFedAPT(setting), BEGUN, party, number)
    assert views.asked == [number % 2]  # one view for a round, in turn
    hand = warm_up_by_hand(setting, party, views.features[number % 2])
    expected, loss = sgd_by_hand(hand, to_numpy(BEGUN), setting.config.train)
    assert_learned(update.learned, expected)
    assert update.loss == pytest.approx(loss, abs=1e-5)
    assert min(moved(update.learned, BEGUN).values()) > 0.01


def test_without_a_sure_image_the_domain_alone_is_learned() -> None:
    setting = make(settings={"unsupervised.confidence": 1.0})
    client = setting.clients[0]
    found = train_one(UnsupervisedFedAPT(setting), BEGUN, client).learned
    assert torch.equal(found["meta_prompt"], BEGUN["meta_prompt"])

    def hand(x: Arrays) -> tuple[float, Arrays]:
        loss, gradient = domain_loss_by_hand(x["adaptive_network"], 0, client.data.load())
        return loss, {"adaptive_network": gradient}

    start = {"adaptive_network": to_numpy(BEGUN)["adaptive_network"]}
    expected, _ = sgd_by_hand(hand, start, setting.config.train)
    assert_learned({"adaptive_network": found["adaptive_network"]}, expected)


def test_the_view_of_an_unsure_image_is_not_seen() -> None:
    views, changed = Views(), Views()
    setting = make()
    data = setting.clients[0].data
    _, probability = pseudo_labels(setting, data.load())
    unsure = data.rows[torch.from_numpy(probability <= 0.8)]
    changed.features[:, unsure] *= -1
    found, other = (
        train_one(UnsupervisedFedAPT(make(views=v)), BEGUN, setting.clients[0]).learned
        for v in (views, changed)
    )
    assert torch.equal(found["meta_prompt"], other["meta_prompt"])
    sure = data.rows[torch.from_numpy(probability > 0.8)]
    changed.features[:, sure] *= -1
    other = train_one(UnsupervisedFedAPT(make(views=changed)), BEGUN, setting.clients[0]).learned
    assert not torch.equal(found["meta_prompt"], other["meta_prompt"])


# the rounds behind it


def agreement_by_hand(setting: Setting, client: Client, dispersion: float = 0.5) -> Gradients:
    batch = client.data.load()
    factor = 1 + setting.keys[client.key].double().numpy()
    f = batch.features.double().numpy()
    unit, n = unit_rows(f), len(f)

    def predict(prompt: Array) -> tuple[Array, Callable[[Array], Array]]:
        text, backward = text_by_hand(prompt * factor)
        return softmax(SCALE * unit @ text.T), backward

    bank, _ = predict(to_numpy(BEGUN)["meta_prompt"])  # of the start of the round
    nearest = bank[np.array(neighbours_by_loops(f, 3))]

    def gradients(x: Arrays) -> tuple[float, Arrays]:
        p, backward = predict(x["meta_prompt"])
        loss = agreement_by_loops(np.log(p), bank, nearest, dispersion)
        to_p = 2 * dispersion * (p.sum(0) - p) / (n * (n - 1))
        to_logits = (p - bank) / n + (p - nearest.mean(1)) / n
        to_logits = to_logits + p * (to_p - (p * to_p).sum(1, keepdims=True))
        to_prompt = backward(SCALE * to_logits.T @ unit)
        return add_domain_loss(loss, to_prompt, x, factor, client.key, batch)

    return gradients


@pytest.mark.parametrize("client", [0, 1])
@pytest.mark.parametrize("dispersion", [0.0, 0.5])
def test_a_clients_steps_behind_the_warm_up(client: int, dispersion: float) -> None:
    setting = make(settings={"unsupervised.dispersion": dispersion, "train.local_epochs": 3})
    party = setting.clients[client]
    update = train_one(UnsupervisedFedAPT(setting), BEGUN, party, WARM_UP)
    hand = agreement_by_hand(setting, party, dispersion)
    expected, loss = sgd_by_hand(hand, to_numpy(BEGUN), setting.config.train)
    assert_learned(update.learned, expected)
    assert update.loss == pytest.approx(loss, abs=1e-5)
    assert min(moved(update.learned, BEGUN).values()) > 0.01


def test_no_view_is_asked_for_behind_the_warm_up() -> None:
    views = Views()
    train_one(UnsupervisedFedAPT(make(views=views)), BEGUN, make().clients[0], WARM_UP)
    assert views.asked == []


def test_the_bank_is_filled_anew_in_every_round() -> None:
    setting = make()
    method = UnsupervisedFedAPT(setting)
    client = setting.clients[0]
    first = train_one(method, BEGUN, client, WARM_UP).learned
    second = train_one(method, first, client, WARM_UP + 1).learned
    fresh = train_one(UnsupervisedFedAPT(setting), first, client, WARM_UP + 1).learned
    for name, value in fresh.items():  # as of a client that was resumed or replaced
        assert torch.equal(second[name], value)


@pytest.mark.parametrize("number", [0, WARM_UP])
@pytest.mark.parametrize("shuffled", [False, True], ids=["rows ascend", "rows in any order"])
def test_batches_find_their_own_images(number: int, shuffled: bool) -> None:
    """Small batches against a loop that keeps everything by the row of the table."""
    setting = make(settings={"train.batch_size": 5})
    client, views = setting.clients[0], Views()
    if shuffled:
        order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
        client = dataclasses.replace(client, data=client.data.subset(order))
    update = train_one(UnsupervisedFedAPT(setting), BEGUN, client, number)

    train, factor = setting.config.train, 1 + setting.keys[0]
    rows = sorted(client.data.rows.tolist())
    features = dict(zip(rows, setting.table.features[rows], strict=True))

    def logits(prompt: Tensor, f: Tensor) -> Tensor:
        return SCALE * f / f.norm(dim=-1, keepdim=True) @ setting.text(prompt * factor).T

    bank = {r: logits(BEGUN["meta_prompt"], f).softmax(-1) for r, f in features.items()}
    places = neighbours_by_loops(torch.stack(list(features.values())).double().numpy(), 3)
    nearest = {r: [bank[rows[j]] for j in near] for r, near in zip(rows, places, strict=True)}
    x = {n: t.clone().requires_grad_() for n, t in BEGUN.items()}
    sgd = torch.optim.SGD(x.values(), train.lr, train.momentum, weight_decay=train.weight_decay)
    seed = child_seed(train.seed, "batches", number, client.index)
    for batch in draw_batches(client.data, train, seed):
        own = batch.rows.tolist()
        f = torch.stack([features[r] for r in own])
        if number == 0:
            p = (SCALE * f / f.norm(dim=-1, keepdim=True) @ setting.zero_shot.T).softmax(-1)
            sure = [i for i in range(len(own)) if float(p[i].max()) > 0.8]
            assert sure
            seen = torch.stack([views.features[0][own[i]] for i in sure])
            label = torch.stack([p[i].argmax() for i in sure])
            loss = cross_entropy(logits(x["meta_prompt"], seen), label)
        else:
            near = torch.stack([torch.stack(nearest[r]) for r in own])
            found = logits(x["meta_prompt"], f)
            loss = agreement_loss(found, torch.stack([bank[r] for r in own]), near, 0.5)
        scores = f @ x["adaptive_network"].T
        sgd.zero_grad()
        (loss + cross_entropy(scores, torch.zeros(len(own), dtype=torch.int64))).backward()
        sgd.step()
    assert_learned(update.learned, to_numpy({n: t.detach() for n, t in x.items()}))


@pytest.mark.parametrize("number", [0, WARM_UP])
def test_a_clients_steps_through_the_whole_text_tower(tiny_backbone: Backbone, number: int) -> None:
    views = Views(32)
    settings = {"prompt.context_length": 4, "unsupervised.confidence": 0.7}
    setting = make(tiny_backbone, views, settings=settings)
    method, client = UnsupervisedFedAPT(setting), setting.clients[1]
    start = method.begin()
    update = train_one(method, start, client, number)
    batch, scale = client.data.load(), tiny_backbone.logit_scale

    def logits(prompt: Tensor, features: Tensor) -> Tensor:
        unit = features / features.norm(dim=-1, keepdim=True)
        return scale * unit @ open_clip_text(tiny_backbone, prompt * (1 + setting.keys[1])).T

    phrase = tiny_backbone.tokenizer([f"a photo of a {name}." for name in setting.class_names])
    zero_shot = tiny_backbone.clip.encode_text(phrase, normalize=True)
    bank = logits(start["meta_prompt"], batch.features).softmax(-1)
    nearest = bank[torch.tensor(neighbours_by_loops(batch.features.double().numpy(), 3))]

    def loss(x: dict[str, Tensor]) -> Tensor:
        scores = batch.features @ x["adaptive_network"].T
        domain = cross_entropy(scores, torch.ones(len(batch), dtype=torch.int64))
        if number:
            found = logits(x["meta_prompt"], batch.features)
            return domain + agreement_loss(found, bank, nearest, 0.5)
        unit = batch.features / batch.features.norm(dim=-1, keepdim=True)
        p, label = (scale * unit @ zero_shot.T).softmax(-1).max(-1)
        sure = p > 0.7
        assert 0 < int(sure.sum()) < len(batch)
        seen = views.features[0][batch.rows][sure]
        return domain + cross_entropy(logits(x["meta_prompt"], seen), label[sure])

    expected, mean = sgd_by_hand(by_autograd(loss), to_numpy(start), setting.config.train)
    assert_learned(update.learned, expected)
    assert update.loss == pytest.approx(mean, abs=1e-5)
    assert min(moved(update.learned, start).values()) > 1e-5


# labels


@pytest.mark.parametrize("number", [0, WARM_UP])
def test_labels_are_never_read(number: int) -> None:
    total = sum(SIZES) + 3
    kinds = [torch.arange(total) % C, torch.full((total,), -1), torch.full((total,), 10**6)]
    rounds = {"train.rounds": number + 1}
    found = []
    for labels in kinds:
        setting = make(labels=labels, settings=rounds)
        found.append(one_round(UnsupervisedFedAPT(setting), BEGUN, number).learned)
    for name in BEGUN:
        assert torch.equal(found[0][name], found[1][name])
        assert torch.equal(found[0][name], found[2][name])
    supervised = [
        one_round(FedAPT(make(labels=labels)), BEGUN).learned["meta_prompt"]
        for labels in (kinds[0], kinds[0].flip(0))
    ]
    assert not torch.equal(*supervised)  # which a method with labels would have noticed


# the rest is FedAPT's


def test_the_aggregate_is_the_mean_of_the_clients() -> None:
    setting = make(settings={"train.rounds": WARM_UP + 1})
    for number in (0, WARM_UP):
        method = UnsupervisedFedAPT(make(settings={"train.rounds": number + 1}))
        replies = []
        for client in setting.clients:
            hand = (
                agreement_by_hand(setting, client)
                if number
                else warm_up_by_hand(setting, client, Views().features[0])
            )
            learned, _ = sgd_by_hand(hand, to_numpy(BEGUN), setting.config.train)
            replies.append(learned)
        mean = {name: (replies[0][name] + replies[1][name]) / 2 for name in BEGUN}
        assert_learned(one_round(method, BEGUN, number).learned, mean)


def test_the_prediction_is_fedapts() -> None:
    setting = make()
    images = rows_of(setting, range(9))
    method, supervised = UnsupervisedFedAPT(setting), FedAPT(setting)
    found = method.predictor(BEGUN)(images, None)
    assert torch.equal(found, supervised.predictor(BEGUN)(images, None))
    weights = method.routing(BEGUN, images.features)
    assert torch.equal(weights, supervised.routing(BEGUN, images.features))
    assert torch.equal(method.frozen()["keys"], supervised.frozen()["keys"])


def test_what_it_settles() -> None:
    def settled(**settings: Any) -> tuple[int, int, bool]:
        config = make_config({k.replace("__", "."): v for k, v in settings.items()})
        once = UnsupervisedFedAPT.resolve(config)
        assert UnsupervisedFedAPT.resolve(once) == once
        return once.train.rounds, once.prompt.context_length, once.prompt.class_specific

    assert settled(train__rounds=50, prompt__context_length=24) == (14, 16, False)
    assert settled(train__rounds=5, prompt__context_length=4) == (5, 4, False)
    assert settled(train__rounds=50, unsupervised__warm_up_rounds=2) == (6, 2, False)
    several = settled(train__rounds=50, federation__clients_per_domain=5)
    assert several == (30, 2, False)


def test_parameters_and_bytes() -> None:
    method = UnsupervisedFedAPT(make())
    start, values = method.begin(), M * W + 2 * W
    assert {n: list(t.shape) for n, t in start.items()} == {
        "meta_prompt": [M, W],
        "adaptive_network": [2, W],
    }
    assert (n_parameters(start), n_bytes(start)) == (values, 4 * values)
    (record,) = one_round(method, start).records
    assert record["bytes_sent"] == 2 * 2 * 4 * values  # the bank stays where it is
