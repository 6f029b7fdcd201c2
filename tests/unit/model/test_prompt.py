"""The meta prompt, the keys, and the personalised prompt by hand."""

from __future__ import annotations

import pytest
import torch

from fedapt.model.prompt import draw_context, draw_keys, personalise

# two keys of M = 1 and W = 2
KEYS = torch.tensor([[[0.5, 0.25]], [[0.0, 1.0]]])


def test_one_weight_vector_on_a_shared_context() -> None:
    context = torch.tensor([[2.0, -4.0]])
    # 1 + 0.25 * (0.5, 0.25) + 0.75 * (0, 1) = (1.125, 1.8125)
    found = personalise(context, KEYS, torch.tensor([0.25, 0.75]))
    assert found.tolist() == [[2.25, -7.25]]


def test_one_weight_vector_on_a_context_per_class() -> None:
    context = torch.tensor([[[2.0, -4.0]], [[1.0, 1.0]], [[0.0, 8.0]]])
    found = personalise(context, KEYS, torch.tensor([0.25, 0.75]))
    assert found.tolist() == [[[2.25, -7.25]], [[1.125, 1.8125]], [[0.0, 14.5]]]


def test_a_batch_of_weights_on_a_shared_context() -> None:
    context = torch.tensor([[2.0, -4.0]])
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.25, 0.75]])
    found = personalise(context, KEYS, weights)
    assert found.tolist() == [[[3.0, -5.0]], [[2.0, -8.0]], [[2.25, -7.25]]]


def test_a_batch_of_weights_on_a_context_per_class() -> None:
    context = torch.tensor([[[2.0, -4.0]], [[1.0, 1.0]]])
    weights = torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.0, 0.0]])
    found = personalise(context, KEYS, weights)
    assert found.shape == (3, 2, 1, 2)
    assert found.tolist() == [
        [[[3.0, -5.0]], [[1.5, 1.25]]],
        [[[2.25, -7.25]], [[1.125, 1.8125]]],
        [[[2.0, -4.0]], [[1.0, 1.0]]],
    ]


def test_a_batch_as_large_as_the_number_of_classes_is_not_mistaken_for_them() -> None:
    context = torch.randn(2, 1, 2, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = personalise(context, KEYS, weights)
    for row, w in zip(found, weights, strict=True):
        assert torch.equal(row, personalise(context, KEYS, w))


def test_keys_are_uniform_in_0_1() -> None:
    keys = draw_keys(4, 24, 64, seed=0)
    assert keys.shape == (4, 24, 64)
    assert keys.dtype == torch.float32
    assert float(keys.min()) >= 0
    assert float(keys.max()) < 1
    assert float(keys.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(keys.var()) == pytest.approx(1 / 12, abs=0.005)


def test_a_further_domain_moves_no_key() -> None:
    keys = draw_keys(5, 3, 8, seed=7)
    assert torch.equal(keys[:4], draw_keys(4, 3, 8, seed=7))


def test_every_key_and_every_seed_has_its_own_numbers() -> None:
    keys = torch.cat([draw_keys(3, 2, 8, seed) for seed in range(3)]).flatten(1)
    assert len(torch.unique(keys, dim=0)) == 9
    assert torch.equal(draw_keys(3, 2, 8, 1), draw_keys(3, 2, 8, 1))


def test_the_context_is_normal_of_std_0_02() -> None:
    context = draw_context(10, 24, 64, seed=0, class_specific=True)
    assert context.shape == (10, 24, 64)
    assert context.dtype == torch.float32
    assert float(context.std()) == pytest.approx(0.02, rel=0.02)
    assert float(context.mean()) == pytest.approx(0.0, abs=0.0005)
    assert not torch.equal(context[0], context[1])


def test_a_shared_context_has_no_class_axis() -> None:
    context = draw_context(10, 24, 64, seed=0, class_specific=False)
    assert context.shape == (24, 64)
    assert float(context.std()) == pytest.approx(0.02, rel=0.05)


def test_the_context_follows_from_the_seed() -> None:
    first = draw_context(2, 3, 4, 0, True)
    assert torch.equal(first, draw_context(2, 3, 4, 0, True))
    assert not torch.equal(first, draw_context(2, 3, 4, 1, True))


def test_drawing_leaves_torchs_own_generator_alone() -> None:
    before = torch.random.get_rng_state()
    draw_keys(2, 3, 4, 0)
    draw_context(2, 3, 4, 0, True)
    assert torch.equal(torch.random.get_rng_state(), before)
