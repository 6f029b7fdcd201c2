"""A client's round against SGD written out in NumPy, with gradients derived by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedapt.core.config import TrainConfig
from fedapt.data.domains import Labelled
from fedapt.model.backbone import Backbone
from fedapt.model.prompted_clip import prompted_text
from fedapt.train.client import ClientTask, Learned, draw_batches, train_client

C, M, W, N, SCALE = 3, 2, 5, 4, 7.0
Array = NDArray[np.float64]


class SumText(nn.Module):
    """A text tower whose gradient is known: the unit sum of a class's context tokens (D = W)."""

    def forward(self, context: Tensor) -> Tensor:
        return normalize(context.expand(C, M, W).sum(1), dim=-1)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


KEYS = draw(N, M, W, seed=0).abs()
START = Learned(draw(C, M, W, seed=1), draw(N, W, seed=2))
BATCHES = [Labelled(3 * draw(n, W, seed=10 + n), torch.arange(n) % C) for n in (4, 6, 3)]


def task(domain: int = 1, keys: Tensor = KEYS, **train: Any) -> ClientTask:
    return ClientTask(SumText(), keys, domain, SCALE, TrainConfig(**train))


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


def sgd_by_hand(batches: list[Labelled], config: TrainConfig, domain: int = 1) -> tuple[Any, ...]:
    context, network = (t.double().numpy().copy() for t in (START.context, START.adaptive_network))
    key = KEYS[domain].double().numpy()
    velocity: list[Array] = [np.zeros_like(context), np.zeros_like(network)]
    losses = []
    for batch in batches:
        loss, *gradients = by_hand(context, network, key, domain, batch)
        losses.append(loss * len(batch))
        for i, (value, gradient) in enumerate(zip((context, network), gradients, strict=True)):
            velocity[i] = config.momentum * velocity[i] + gradient + config.weight_decay * value
            value -= config.lr * velocity[i]
    return context, network, sum(losses) / sum(len(batch) for batch in batches)


def assert_learned(found: Learned, context: Array, network: Array) -> None:
    np.testing.assert_allclose(found.context.numpy(), context, rtol=0, atol=2e-6)
    np.testing.assert_allclose(found.adaptive_network.numpy(), network, rtol=0, atol=2e-6)


# the loss


def test_the_logits_are_the_scaled_cosines_under_the_domains_key() -> None:
    logits, domain_logits = task(2).logits(
        START.context, START.adaptive_network, BATCHES[0].features
    )
    f = BATCHES[0].features.double().numpy()
    summed = (START.context.double().numpy() * (1 + KEYS[2].double().numpy())).sum(1)
    cosine = (f @ summed.T) / np.outer(np.linalg.norm(f, axis=1), np.linalg.norm(summed, axis=1))
    np.testing.assert_allclose(logits.numpy(), SCALE * cosine, rtol=0, atol=1e-5)
    scores = f @ START.adaptive_network.double().numpy().T  # of f itself, not of f / |f|
    np.testing.assert_allclose(domain_logits.numpy(), scores, rtol=0, atol=1e-5)


def test_the_loss_is_the_sum_of_two_cross_entropies() -> None:
    values = []
    for domain in range(N):
        key = KEYS[domain].double().numpy()
        context, network = (t.double().numpy() for t in (START.context, START.adaptive_network))
        expected, *_ = by_hand(context, network, key, domain, BATCHES[0])
        batch = BATCHES[0]
        found = task(domain).loss(
            START.context, START.adaptive_network, batch.features, batch.labels
        )
        assert float(found) == pytest.approx(expected, abs=1e-5)
        values.append(round(expected, 3))
    assert len(set(values)) == N  # the domain matters


# the steps


def test_one_plain_step() -> None:
    config = {"lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}
    found = train_client(task(**config), START, BATCHES[:1])
    context, network, loss = sgd_by_hand(BATCHES[:1], TrainConfig(**config))
    assert_learned(found.learned, context, network)
    assert found.loss == pytest.approx(loss, abs=1e-5)
    assert found.n_samples == 4
    assert float((found.learned.context - START.context).abs().max()) > 0.01


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 0.0), (0.0, 0.1), (0.9, 0.1)])
def test_three_steps_with_momentum_and_weight_decay(momentum: float, weight_decay: float) -> None:
    config = {"lr": 0.1, "momentum": momentum, "weight_decay": weight_decay}
    found = train_client(task(**config), START, BATCHES)
    context, network, loss = sgd_by_hand(BATCHES, TrainConfig(**config))
    assert_learned(found.learned, context, network)
    assert found.loss == pytest.approx(loss, abs=1e-5)
    assert found.n_samples == 13
    plain, *_ = sgd_by_hand(BATCHES, TrainConfig(lr=0.1, momentum=0.0, weight_decay=0.0))
    assert np.abs(found.learned.context.numpy() - plain).max() > 1e-3  # both options matter


def test_the_settings_of_the_paper_are_used_by_default() -> None:
    found = train_client(task(), START, BATCHES)
    context, network, _ = sgd_by_hand(
        BATCHES, TrainConfig(lr=0.01, momentum=0.9, weight_decay=1e-5)
    )
    assert_learned(found.learned, context, network)


def test_momentum_starts_afresh_in_every_round() -> None:
    config = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    first = train_client(task(**config), START, BATCHES[:1])
    again = train_client(task(**config), START, BATCHES[:1])
    assert torch.equal(again.learned.context, first.learned.context)
    second = train_client(task(**config), first.learned, BATCHES[1:2])
    plain = train_client(task(lr=0.1, momentum=0.0, weight_decay=0.0), first.learned, BATCHES[1:2])
    assert torch.equal(second.learned.context, plain.learned.context)
    one_round = train_client(task(**config), START, BATCHES[:2])
    gap = (one_round.learned.context - second.learned.context).abs().max()
    assert float(gap) > 1e-3


def test_the_aggregate_is_not_changed() -> None:
    context, network = START.context.clone(), START.adaptive_network.clone()
    found = train_client(task(lr=1.0), START, BATCHES)
    assert torch.equal(START.context, context)
    assert torch.equal(START.adaptive_network, network)
    assert not START.context.requires_grad
    assert not found.learned.context.requires_grad
    assert not found.learned.adaptive_network.requires_grad


def test_the_keys_of_other_domains_do_not_matter() -> None:
    changed = KEYS.clone()
    changed[[0, 2, 3]] += 1
    found = train_client(task(1, changed), START, BATCHES)
    assert torch.equal(found.learned.context, train_client(task(1), START, BATCHES).learned.context)
    changed[1] += 1
    found = train_client(task(1, changed), START, BATCHES)
    expected = train_client(task(1), START, BATCHES)
    assert not torch.equal(found.learned.context, expected.learned.context)


def test_a_client_without_images_learns_nothing() -> None:
    found = train_client(task(), START, [])
    assert torch.equal(found.learned.context, START.context)
    assert (found.n_samples, found.loss) == (0, 0.0)


@pytest.mark.parametrize("class_specific", [True, False])
def test_with_a_real_text_tower_only_v_and_q_move(
    tiny_backbone: Backbone, class_specific: bool
) -> None:
    before = tiny_backbone.sha256
    text = prompted_text(tiny_backbone, ("mug", "bike"), 2)
    context = 0.02 * draw(*((2, 2, 32) if class_specific else (2, 32)), seed=3)
    start = Learned(context, 0.1 * draw(N, 32, seed=4))
    data = Labelled(draw(8, 32, seed=5), torch.arange(8) % 2)
    client = ClientTask(text, draw(N, 2, 32, seed=6).abs(), 0, 10.0, TrainConfig(lr=0.1))
    losses = []
    for _ in range(5):
        reply = train_client(client, start, [data])
        start = reply.learned
        losses.append(reply.loss)
    assert losses == sorted(losses, reverse=True)
    assert start.context.shape == context.shape
    del tiny_backbone.__dict__["sha256"]  # computed once, so compute it again
    assert tiny_backbone.sha256 == before


def test_bytes_on_the_wire() -> None:
    assert START.n_bytes == 4 * (C * M * W + N * W)
    assert Learned(torch.zeros(M, W), torch.zeros(N, W)).n_bytes == 4 * (M * W + N * W)


# the batches


def numbered(n: int) -> Labelled:
    return Labelled(torch.arange(n).float().unsqueeze(1), torch.arange(n) % C)


def rows(batches: list[Labelled]) -> list[list[int]]:
    return [batch.features.flatten().int().tolist() for batch in batches]


@pytest.mark.parametrize(
    ("n", "size", "lengths"),
    [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 4, [3]), (5, 1, [1] * 5), (1, 256, [1])],
)
def test_an_epoch_has_every_image_once(n: int, size: int, lengths: list[int]) -> None:
    config = TrainConfig(batch_size=size)
    drawn = rows(list(draw_batches(numbered(n), config, seed=0)))
    assert [len(batch) for batch in drawn] == lengths
    assert sorted(i for batch in drawn for i in batch) == list(range(n))


def test_features_stay_with_their_labels() -> None:
    for batch in draw_batches(numbered(20), TrainConfig(batch_size=6), seed=3):
        assert batch.labels.tolist() == [int(i) % C for i in batch.features.flatten()]


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


def test_no_images_give_no_learning() -> None:
    empty = Labelled(torch.empty(0, 1), torch.empty(0, dtype=torch.int64))
    assert sum(len(batch) for batch in draw_batches(empty, TrainConfig(), seed=0)) == 0
