"""The server's average, by hand."""

from __future__ import annotations

import random

import pytest
import torch

from fedapt.train.aggregate import average
from fedapt.train.client import ClientUpdate, Learned


def update(context: float, network: float, n_samples: int) -> ClientUpdate:
    learned = Learned(torch.full((2, 1, 3), context), torch.full((2, 4), network))
    return ClientUpdate(learned, n_samples, loss=0.0)


UPDATES = [update(1.0, -2.0, 10), update(2.0, 0.0, 30), update(6.0, 8.0, 40)]


def test_uniform_counts_every_client_alike() -> None:
    learned = average(UPDATES, "uniform")
    assert learned.context.tolist() == torch.full((2, 1, 3), 3.0).tolist()
    assert learned.adaptive_network.tolist() == torch.full((2, 4), 2.0).tolist()


def test_samples_counts_every_image_alike() -> None:
    learned = average(UPDATES, "samples")
    # (10 * 1 + 30 * 2 + 40 * 6) / 80 and (10 * -2 + 40 * 8) / 80
    assert learned.context.tolist() == torch.full((2, 1, 3), 3.875).tolist()
    assert learned.adaptive_network.tolist() == torch.full((2, 4), 3.75).tolist()


def test_positions_are_not_mixed() -> None:
    contexts = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 8.0]])]
    networks = [torch.tensor([[0.0], [4.0]]), torch.tensor([[2.0], [-4.0]])]
    learned = [Learned(*pair) for pair in zip(contexts, networks, strict=True)]
    averaged = average([ClientUpdate(one, 1, loss=0.0) for one in learned], "uniform")
    assert averaged.context.tolist() == [[2.0, 5.0]]
    assert averaged.adaptive_network.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_one_client_is_its_own_average(weighting: str) -> None:
    learned = average(UPDATES[1:2], weighting)
    assert torch.equal(learned.context, UPDATES[1].learned.context)
    assert torch.equal(learned.adaptive_network, UPDATES[1].learned.adaptive_network)


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_the_order_of_the_clients_changes_no_bit(weighting: str) -> None:
    generator = torch.Generator().manual_seed(0)
    updates = [
        ClientUpdate(
            Learned(
                10.0**i * torch.randn(3, 2, 4, generator=generator),
                torch.randn(2, 8, generator=generator),
            ),
            n_samples=i + 1,
            loss=0.0,
        )
        for i in range(-3, 4)
        if i + 1 > 0
    ]
    expected = average(updates, weighting)
    for seed in range(10):
        shuffled = random.Random(seed).sample(updates, len(updates))
        learned = average(shuffled, weighting)
        assert torch.equal(learned.context, expected.context)
        assert torch.equal(learned.adaptive_network, expected.adaptive_network)


def test_the_average_is_float32_and_changes_no_reply() -> None:
    learned = average(UPDATES, "samples")
    assert learned.context.dtype == learned.adaptive_network.dtype == torch.float32
    learned.context.zero_()
    assert float(UPDATES[0].learned.context.sum()) == 6.0
