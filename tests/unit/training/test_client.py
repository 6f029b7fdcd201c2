"""A client's round against SGD written out in NumPy, with gradients derived by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedapt.core.config import Config, TrainConfig, read_config
from fedapt.core.errors import FederationError
from fedapt.data.domains import ImageSet, ImageTable, Labelled
from fedapt.data.partition import Client
from fedapt.model.backbone import Backbone
from fedapt.model.prompted_clip import prompted_text
from fedapt.training.client import ClientUpdate, draw_batches, learning_rate, train_client
from fedapt.training.methods.base import Learned, Objective, n_bytes, n_parameters
from fedapt.training.methods.fedapt import ADAPTIVE_NETWORK, META_PROMPT, FedAPT

C, M, W, N, SCALE = 3, 2, 5, 4, 7.0
Array = NDArray[np.float64]


class SumText(nn.Module):
    """A text tower whose gradient is known: the unit sum of a class's context tokens (D = W)."""

    def forward(self, context: Tensor) -> Tensor:
        return normalize(context.expand(C, M, W).sum(1), dim=-1)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labelled(features: Tensor, labels: Tensor) -> Labelled:
    return Labelled(features, labels, torch.arange(len(labels)))


KEYS = draw(N, M, W, seed=0).abs()
START = {META_PROMPT: draw(C, M, W, seed=1), ADAPTIVE_NETWORK: draw(N, W, seed=2)}
BATCHES = [labelled(3 * draw(n, W, seed=10 + n), torch.arange(n) % C) for n in (4, 6, 3)]


def method(keys: Tensor = KEYS, text: nn.Module | None = None, scale: float = SCALE) -> FedAPT:
    """FedAPT on a text tower alone."""
    setting: Any = SimpleNamespace(
        config=Config(),
        keys=keys,
        training_text=text or SumText(),
        backbone=SimpleNamespace(logit_scale=scale),
    )
    return FedAPT(setting)


def objective(domain: int = 1, keys: Tensor = KEYS) -> Objective:
    data = ImageSet(ImageTable((), torch.empty(0, W), torch.empty(0)), torch.empty(0))
    return method(keys).objective(START, Client(0, "a", 0, domain, data), 0)


def train(
    start: Learned, batches: list[Labelled], domain: int = 1, keys: Tensor = KEYS, **config: Any
) -> ClientUpdate:
    settings = TrainConfig(**{"router_lr": 0.0} | config)  # one rate for all, as by hand
    return train_client(objective(domain, keys), start, batches, settings)


def softmax(z: Array) -> Array:
    powers = np.exp(z - z.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def by_hand(
    context: Array, network: Array, key: Array, domain: int, batch: Labelled
) -> tuple[float, Array, Array]:
    """Loss, its gradient for V and its gradient for Q."""
    f = batch.features.double().numpy()
    labels = batch.labels.numpy()
    n = len(labels)
    unit = f / np.linalg.norm(f, axis=1, keepdims=True)
    summed = (context * (1 + key)).sum(1)  # u_c
    length = np.linalg.norm(summed, axis=1, keepdims=True)
    text = summed / length  # t_c
    p, q = softmax(SCALE * unit @ text.T), softmax(f @ network.T)
    loss = -np.log(p[np.arange(n), labels]).mean() - np.log(q[:, domain]).mean()
    p[np.arange(n), labels] -= 1
    q[:, domain] -= 1
    to_text = SCALE * p.T @ unit / n
    to_sum = (to_text - (to_text * text).sum(1, keepdims=True) * text) / length
    return loss, to_sum[:, None] * (1 + key), q.T @ f / n


def to_numpy(learned: Learned) -> tuple[Array, Array]:
    return tuple(learned[name].double().numpy().copy() for name in (META_PROMPT, ADAPTIVE_NETWORK))


def sgd_by_hand(batches: list[Labelled], config: TrainConfig, domain: int = 1) -> tuple[Any, ...]:
    context, network = to_numpy(START)
    begun = to_numpy(START)
    key = KEYS[domain].double().numpy()
    velocity: list[Array] = [np.zeros_like(context), np.zeros_like(network)]
    losses = []
    for batch in batches:
        loss, *gradients = by_hand(context, network, key, domain, batch)
        moved = [value - start for value, start in zip((context, network), begun, strict=True)]
        losses.append(loss * len(batch))
        for i, (value, gradient) in enumerate(zip((context, network), gradients, strict=True)):
            pull = config.weight_decay * value + config.proximal * moved[i]
            velocity[i] = config.momentum * velocity[i] + gradient + pull
            value -= config.lr * velocity[i]
    return context, network, sum(losses) / sum(len(batch) for batch in batches)


def assert_learned(found: Learned, context: Array, network: Array) -> None:
    assert set(found) == {META_PROMPT, ADAPTIVE_NETWORK}
    np.testing.assert_allclose(found[META_PROMPT].numpy(), context, rtol=0, atol=2e-6)
    np.testing.assert_allclose(found[ADAPTIVE_NETWORK].numpy(), network, rtol=0, atol=2e-6)


# the loss


def test_the_logits_are_the_scaled_cosines_under_the_domains_key() -> None:
    logits = method().client_logits(START, 2, BATCHES[0].features)
    f = BATCHES[0].features.double().numpy()
    summed = (to_numpy(START)[0] * (1 + KEYS[2].double().numpy())).sum(1)
    cosine = (f @ summed.T) / np.outer(np.linalg.norm(f, axis=1), np.linalg.norm(summed, axis=1))
    np.testing.assert_allclose(logits.numpy(), SCALE * cosine, rtol=0, atol=1e-5)


def test_the_domain_loss_is_of_the_feature_itself_and_not_of_its_direction() -> None:
    f = BATCHES[0].features
    network = to_numpy(START)[1]
    for domain in range(N):
        found = float(method().domain_loss(START, domain, f))
        q, wrong = (softmax(x.double().numpy() @ network.T) for x in (f, normalize(f, dim=-1)))
        assert found == pytest.approx(-np.log(q[:, domain]).mean(), abs=1e-5)
        assert abs(found + np.log(wrong[:, domain]).mean()) > 1e-2


def test_the_loss_is_the_sum_of_two_cross_entropies() -> None:
    values = []
    for domain in range(N):
        key = KEYS[domain].double().numpy()
        context, network = to_numpy(START)
        expected, *_ = by_hand(context, network, key, domain, BATCHES[0])
        found = objective(domain)(START, BATCHES[0])
        assert float(found) == pytest.approx(expected, abs=1e-5)
        values.append(round(expected, 3))
    assert len(set(values)) == N  # the domain matters


# the steps


def test_one_plain_step() -> None:
    config = {"lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}
    found = train(START, BATCHES[:1], **config)
    context, network, loss = sgd_by_hand(BATCHES[:1], TrainConfig(**config))
    assert_learned(found.learned, context, network)
    assert found.loss == pytest.approx(loss, abs=1e-5)
    assert found.n_samples == 4
    assert float((found.learned[META_PROMPT] - START[META_PROMPT]).abs().max()) > 0.01


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 0.0), (0.0, 0.1), (0.9, 0.1)])
def test_three_steps_with_momentum_and_weight_decay(momentum: float, weight_decay: float) -> None:
    config = {"lr": 0.1, "momentum": momentum, "weight_decay": weight_decay}
    found = train(START, BATCHES, **config)
    context, network, loss = sgd_by_hand(BATCHES, TrainConfig(**config))
    assert_learned(found.learned, context, network)
    assert found.loss == pytest.approx(loss, abs=1e-5)
    assert found.n_samples == 13
    plain, *_ = sgd_by_hand(BATCHES, TrainConfig(lr=0.1, momentum=0.0, weight_decay=0.0))
    assert np.abs(found.learned[META_PROMPT].numpy() - plain).max() > 1e-3  # both options matter


def test_the_settings_of_the_paper() -> None:
    found = train_client(objective(), START, BATCHES, read_config(None, preset="paper").train)
    context, network, _ = sgd_by_hand(
        BATCHES, TrainConfig(lr=0.01, momentum=0.9, weight_decay=1e-5)
    )
    assert_learned(found.learned, context, network)


def test_momentum_starts_afresh_in_every_round() -> None:
    config = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    first = train(START, BATCHES[:1], **config)
    again = train(START, BATCHES[:1], **config)
    assert torch.equal(again.learned[META_PROMPT], first.learned[META_PROMPT])
    second = train(first.learned, BATCHES[1:2], **config)
    plain = train(first.learned, BATCHES[1:2], lr=0.1, momentum=0.0, weight_decay=0.0)
    assert torch.equal(second.learned[META_PROMPT], plain.learned[META_PROMPT])
    one_round = train(START, BATCHES[:2], **config)
    gap = (one_round.learned[META_PROMPT] - second.learned[META_PROMPT]).abs().max()
    assert float(gap) > 1e-3


def test_the_aggregate_is_not_changed() -> None:
    before = {name: tensor.clone() for name, tensor in START.items()}
    found = train(START, BATCHES, lr=1.0, proximal=0.1)
    for name, tensor in before.items():
        assert torch.equal(START[name], tensor)
        assert not START[name].requires_grad
        assert not found.learned[name].requires_grad
        assert float((found.learned[name] - tensor).abs().max()) > 0


def test_the_keys_of_other_domains_do_not_matter() -> None:
    changed = KEYS.clone()
    changed[[0, 2, 3]] += 1
    found, expected = train(START, BATCHES, 1, changed), train(START, BATCHES, 1)
    assert torch.equal(found.learned[META_PROMPT], expected.learned[META_PROMPT])
    changed[1] += 1
    found = train(START, BATCHES, 1, changed)
    assert not torch.equal(found.learned[META_PROMPT], expected.learned[META_PROMPT])


@pytest.mark.parametrize("proximal", [0.0, 0.5])
def test_a_client_without_images_learns_nothing(proximal: float) -> None:
    found = train(START, [], proximal=proximal)
    assert torch.equal(found.learned[META_PROMPT], START[META_PROMPT])
    assert (found.n_samples, found.loss) == (0, 0.0)


def test_a_reply_names_its_client() -> None:
    assert train_client(objective(), START, BATCHES, TrainConfig(), client=5).client == 5


# FedProx


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("proximal", [0.1, 2.0])
def test_the_proximal_term_by_hand(proximal: float, momentum: float) -> None:
    config = {"lr": 0.1, "momentum": momentum, "weight_decay": 0.01, "proximal": proximal}
    found = train(START, BATCHES, **config)
    context, network, loss = sgd_by_hand(BATCHES, TrainConfig(**config))
    assert_learned(found.learned, context, network)
    assert found.loss == pytest.approx(loss, abs=1e-5)
    without, *_ = sgd_by_hand(BATCHES, TrainConfig(**(config | {"proximal": 0.0})))
    assert np.abs(context - without).max() > 1e-3  # it matters


def test_the_first_step_knows_no_pull() -> None:
    found, plain = (train(START, BATCHES[:1], lr=0.1, proximal=mu) for mu in (5.0, 0.0))
    assert_learned(found.learned, *to_numpy(plain.learned))
    assert found.loss == pytest.approx(plain.loss, abs=1e-6)


def test_a_strong_pull_keeps_a_client_near_the_aggregate() -> None:
    far = []
    for mu in (0.0, 1.0, 10.0):
        reply = train(START, BATCHES * 10, lr=0.05, momentum=0.0, weight_decay=0.0, proximal=mu)
        far.append(float((reply.learned[META_PROMPT] - START[META_PROMPT]).norm()))
    assert far[0] > 1.5 * far[1] > 1.5 * 2 * far[2]


# the learning rate


def test_a_cosine_falls_from_the_rate_to_nearly_nothing() -> None:
    config = TrainConfig(schedule="cosine", lr=0.8, rounds=4)
    rates = [learning_rate(config, number) for number in range(4)]
    half = math.sqrt(0.5)
    assert rates == pytest.approx([0.8, 0.4 * (1 + half), 0.4, 0.4 * (1 - half)], abs=1e-12)
    long = TrainConfig(schedule="cosine", lr=1.0, rounds=1000)
    rates = [learning_rate(long, number) for number in range(1000)]
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-5


def test_a_constant_rate_is_constant() -> None:
    config = TrainConfig(lr=0.3, rounds=10)
    assert {learning_rate(config, number) for number in range(20)} == {0.3}


def test_a_round_steps_with_its_own_rate() -> None:
    cosine = TrainConfig(schedule="cosine", lr=0.8, rounds=4, router_lr=0.0)
    for number, lr in ((0, 0.8), (2, 0.4)):
        found = train_client(objective(), START, BATCHES, cosine, round_number=number)
        expected = train(START, BATCHES, lr=lr)
        assert_learned(found.learned, *to_numpy(expected.learned))
    last = train_client(objective(), START, BATCHES, cosine, round_number=3)
    first = train_client(objective(), START, BATCHES, cosine, round_number=0)
    assert not torch.equal(last.learned[META_PROMPT], first.learned[META_PROMPT])


# what is not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_loss_that_is_not_finite_is_refused_with_round_and_client(
    value: float, place: int
) -> None:
    batches = list(BATCHES)
    features = batches[place].features.clone()
    features[1, 0] = value
    batches[place] = labelled(features, batches[place].labels)
    with pytest.raises(
        FederationError,
        match=r"round 3, client sketch/2: found a loss of nan; expected finite numbers\. To do: "
        r"lower train\.lr; the checkpoint of the previous round is kept",
    ) as caught:
        train_client(
            objective(), START, batches, TrainConfig(), round_number=2, client=7, name="sketch/2"
        )
    assert caught.value.exit_code == 5


def test_what_was_learned_has_to_be_finite_too() -> None:
    start = {"good": torch.ones(2), "bad": torch.zeros(2)}

    def loss(learned: Learned, batch: Labelled) -> Tensor:
        return learned["good"].sum() + learned["bad"].sqrt().sum()  # 2, with an infinite slope

    with pytest.raises(
        FederationError, match="round 1, client 7: found bad with NaN or infinity; expected finite"
    ):
        train_client(loss, start, BATCHES[:1], TrainConfig(), client=7)


@pytest.mark.parametrize("class_specific", [True, False])
def test_with_a_real_text_tower_only_v_and_q_move(
    tiny_backbone: Backbone, class_specific: bool
) -> None:
    before = tiny_backbone.sha256
    text = prompted_text(tiny_backbone, ("mug", "bike"), 2)
    context = 0.02 * draw(*((2, 2, 32) if class_specific else (2, 32)), seed=3)
    start = {META_PROMPT: context, ADAPTIVE_NETWORK: 0.1 * draw(N, 32, seed=4)}
    data = labelled(draw(8, 32, seed=5), torch.arange(8) % 2)
    fedapt = method(draw(N, 2, 32, seed=6).abs(), text, 10.0)
    client = Client(0, "a", 0, 0, numbered(0))
    losses = []
    for _ in range(5):
        reply = train_client(fedapt.objective(start, client, 0), start, [data], TrainConfig(lr=0.1))
        start = reply.learned
        losses.append(reply.loss)
    assert losses == sorted(losses, reverse=True)
    assert start[META_PROMPT].shape == context.shape
    del tiny_backbone.__dict__["sha256"]  # computed once, so compute it again
    assert tiny_backbone.sha256 == before


def test_bytes_on_the_wire() -> None:
    assert n_bytes(START) == 4 * (C * M * W + N * W)
    assert n_bytes({"a": torch.zeros(M, W), "b": torch.zeros(N, W)}) == 4 * (M * W + N * W)
    assert n_bytes({"half": torch.zeros(M, dtype=torch.float16)}) == 2 * M
    assert n_parameters(START) == C * M * W + N * W
    assert n_bytes({}) == n_parameters({}) == 0


# the batches


def numbered(n: int) -> ImageSet:
    """n images in the middle of a larger table; the feature of each is its place among them."""
    places = torch.arange(n + 9) - 5
    table = ImageTable(
        tuple(Path(f"{i}.png") for i in places.tolist()), places.float().unsqueeze(1), places % C
    )
    return ImageSet(table, torch.arange(5, n + 5))


def rows(batches: list[Labelled]) -> list[list[int]]:
    return [batch.features.flatten().int().tolist() for batch in batches]


@pytest.mark.parametrize(
    ("n", "size", "even", "rest"),
    [
        (10, 4, [4, 3, 3], [4, 4, 2]),
        (266, 256, [133, 133], [256, 10]),
        (8, 4, [4, 4], [4, 4]),
        (3, 4, [3], [3]),
        (5, 1, [1] * 5, [1] * 5),
        (1, 256, [1], [1]),
    ],
)
@pytest.mark.parametrize("is_even", [True, False])
def test_an_epoch_has_every_image_once(
    n: int, size: int, even: list[int], rest: list[int], is_even: bool
) -> None:
    config, lengths = (
        TrainConfig(batch_size=size, even_batches=is_even),
        even if is_even else rest,
    )
    drawn = rows(list(draw_batches(numbered(n), config, seed=0)))
    assert [len(batch) for batch in drawn] == lengths
    assert sorted(i for batch in drawn for i in batch) == list(range(n))


def test_features_stay_with_their_labels() -> None:
    for batch in draw_batches(numbered(20), TrainConfig(batch_size=6), seed=3):
        assert batch.labels.tolist() == [int(i) % C for i in batch.features.flatten()]
        assert batch.rows.tolist() == [int(i) + 5 for i in batch.features.flatten()]


def test_every_epoch_is_shuffled_anew() -> None:
    config = TrainConfig(batch_size=7, local_epochs=3)
    drawn = rows(list(draw_batches(numbered(20), config, seed=0)))
    assert [len(batch) for batch in drawn] == [7, 7, 6] * 3
    epochs = [[i for batch in drawn[s : s + 3] for i in batch] for s in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != list(range(20))


def test_the_seed_alone_decides_the_order() -> None:
    config = TrainConfig(batch_size=4, local_epochs=2)
    first = rows(list(draw_batches(numbered(20), config, seed=5)))
    torch.rand(3)
    assert rows(list(draw_batches(numbered(20), config, seed=5))) == first
    assert rows(list(draw_batches(numbered(20), config, seed=6))) != first


@pytest.mark.parametrize("n_images", [0, 7])
def test_no_images_give_no_learning(n_images: int) -> None:
    config = TrainConfig(images_per_round=n_images)
    assert list(draw_batches(numbered(0), config, seed=0)) == []


@pytest.mark.parametrize(
    ("images_per_round", "epochs", "lengths"),
    [
        (6, 1, [3, 3]),
        (4, 1, [4]),
        (1, 1, [1]),
        (6, 3, [3, 3]),
        (10, 3, [4, 3, 3]),
        (14, 2, [4, 3, 3, 4]),
        (15, 3, [4, 3, 3, 3, 2]),
        (20, 2, [4, 3, 3] * 2),
        (1000, 1, [4, 3, 3]),
        (1000, 2, [4, 3, 3] * 2),
    ],
)
def test_a_round_has_no_more_images_than_asked_for(
    images_per_round: int, epochs: int, lengths: list[int]
) -> None:
    config = TrainConfig(batch_size=4, local_epochs=epochs, images_per_round=images_per_round)
    drawn = rows(list(draw_batches(numbered(10), config, seed=0)))
    assert [len(batch) for batch in drawn] == lengths
    images = [i for batch in drawn for i in batch]
    for start in range(0, len(images), 10):  # each epoch has an image once at most
        epoch = images[start : start + 10]
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= set(range(10))


def test_the_images_of_a_round_are_the_first_of_its_epochs() -> None:
    config = TrainConfig(batch_size=4, local_epochs=2)
    limited = TrainConfig(batch_size=4, local_epochs=2, images_per_round=14)
    every = [i for batch in rows(list(draw_batches(numbered(10), config, 3))) for i in batch]
    some = [i for batch in rows(list(draw_batches(numbered(10), limited, 3))) for i in batch]
    assert some == every[:14]
    others = [i for batch in rows(list(draw_batches(numbered(10), limited, 4))) for i in batch]
    assert others != some
