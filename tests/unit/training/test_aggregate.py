"""The server's averages, by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from fedapt.training.aggregate import Average, NoisyMean
from fedapt.training.client import ClientUpdate
from fedapt.training.methods.base import Learned

START = {"meta_prompt": torch.zeros(2, 1, 3), "adaptive_network": torch.zeros(2, 4)}


def update(context: float, network: float, n_samples: int) -> ClientUpdate:
    learned = {
        "meta_prompt": torch.full((2, 1, 3), context),
        "adaptive_network": torch.full((2, 4), network),
    }
    return ClientUpdate(0, learned, n_samples, loss=0.0)


UPDATES = [update(1.0, -2.0, 10), update(2.0, 0.0, 30), update(6.0, 8.0, 40)]


def average(
    updates: Sequence[ClientUpdate],
    weighting: str,
    start: Learned | None = None,
    slots: Sequence[Mapping[str, int]] | None = None,
) -> Learned:
    found = Average(START if start is None else start, weighting)
    for one, own in zip(updates, slots or [{}] * len(updates), strict=True):
        found.add(one, own)
    return found.result()


def test_uniform_counts_every_client_alike() -> None:
    learned = average(UPDATES, "uniform")
    assert learned["meta_prompt"].tolist() == torch.full((2, 1, 3), 3.0).tolist()
    assert learned["adaptive_network"].tolist() == torch.full((2, 4), 2.0).tolist()


def test_samples_counts_every_image_alike() -> None:
    learned = average(UPDATES, "samples")
    # (10 * 1 + 30 * 2 + 40 * 6) / 80 and (10 * -2 + 40 * 8) / 80
    assert learned["meta_prompt"].tolist() == torch.full((2, 1, 3), 3.875).tolist()
    assert learned["adaptive_network"].tolist() == torch.full((2, 4), 3.75).tolist()


def test_positions_are_not_mixed() -> None:
    contexts = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 8.0]])]
    networks = [torch.tensor([[0.0], [4.0]]), torch.tensor([[2.0], [-4.0]])]
    learned = [
        {"meta_prompt": context, "adaptive_network": network}
        for context, network in zip(contexts, networks, strict=True)
    ]
    updates = [ClientUpdate(i, one, 1, loss=0.0) for i, one in enumerate(learned)]
    averaged = average(updates, "uniform")
    assert averaged["meta_prompt"].tolist() == [[2.0, 5.0]]
    assert averaged["adaptive_network"].tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_one_client_is_its_own_average(weighting: str) -> None:
    learned = average(UPDATES[1:2], weighting)
    for name, tensor in UPDATES[1].learned.items():
        assert torch.equal(learned[name], tensor)


def draw_updates() -> list[ClientUpdate]:
    generator = torch.Generator().manual_seed(0)
    return [
        ClientUpdate(
            i,
            {
                "meta_prompt": 10.0**i * torch.randn(3, 2, 4, generator=generator),
                "adaptive_network": torch.randn(2, 8, generator=generator),
            },
            n_samples=i + 1,
            loss=0.0,
        )
        for i in range(4)
    ]


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_the_order_of_the_clients_changes_no_bit(weighting: str) -> None:
    updates = draw_updates()
    expected = average(updates, weighting)
    for seed in range(10):
        shuffled = random.Random(seed).sample(updates, len(updates))
        learned = average(shuffled, weighting)
        assert torch.equal(learned["meta_prompt"], expected["meta_prompt"])
        assert torch.equal(learned["adaptive_network"], expected["adaptive_network"])


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_the_average_is_that_of_float64(weighting: str) -> None:
    updates = draw_updates()
    weights = [float(u.n_samples) if weighting == "samples" else 1.0 for u in updates]
    for name, tensor in average(updates, weighting).items():
        terms = [w * u.learned[name].double() for w, u in zip(weights, updates, strict=True)]
        assert torch.equal(tensor, (torch.stack(terms).sum(0) / sum(weights)).float())


def test_the_average_is_float32_and_changes_no_reply() -> None:
    learned = average(UPDATES, "samples")
    assert learned["meta_prompt"].dtype == learned["adaptive_network"].dtype == torch.float32
    learned["meta_prompt"].zero_()
    assert [float(u.learned["meta_prompt"].sum()) for u in UPDATES] == [6.0, 12.0, 36.0]


def test_without_a_reply_everything_stays() -> None:
    learned = Average(START, "samples").result()
    assert all(learned[name] is tensor for name, tensor in START.items())
    assert learned is not START


# tensors of which every key or client owns a slice


OWNED = {"contexts": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), "shared": torch.zeros(1)}


def reply(client: int, own: Sequence[float], shared: float, n_samples: int) -> ClientUpdate:
    learned = {"contexts": torch.tensor(own), "shared": torch.tensor([shared])}
    return ClientUpdate(client, learned, n_samples, loss=0.0)


REPLIES = [reply(0, [10, 20], 1.0, 10), reply(1, [30, 60], 2.0, 30), reply(2, [7, 8], 6.0, 40)]


@pytest.mark.parametrize(
    ("weighting", "first", "shared"),
    [("uniform", [20.0, 40.0], 3.0), ("samples", [25.0, 50.0], 3.875)],
)
def test_a_slice_is_averaged_over_those_that_own_it(
    weighting: str, first: list[float], shared: float
) -> None:
    slots = [{"contexts": 0}, {"contexts": 0}, {"contexts": 2}]
    learned = average(REPLIES, weighting, OWNED, slots)
    # nobody of this round owns the second
    assert learned["contexts"].tolist() == [first, [3.0, 4.0], [7.0, 8.0]]
    assert learned["shared"].tolist() == [shared]
    assert learned["contexts"].dtype == torch.float32


def test_the_first_slice_is_a_slice_too() -> None:
    learned = average(REPLIES[:1], "uniform", OWNED, [{"contexts": 0}])
    assert learned["contexts"].tolist() == [[10.0, 20.0], [3.0, 4.0], [5.0, 6.0]]


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_the_start_is_not_changed_by_slices(weighting: str) -> None:
    before = {name: tensor.clone() for name, tensor in OWNED.items()}
    learned = average(REPLIES, weighting, OWNED, [{"contexts": i} for i in range(3)])
    learned["contexts"].zero_()
    learned["shared"].zero_()
    assert all(torch.equal(OWNED[name], tensor) for name, tensor in before.items())
    assert REPLIES[0].learned["contexts"].tolist() == [10.0, 20.0]


def test_slices_of_an_average_do_not_depend_on_the_order_of_replies() -> None:
    slots = [{"contexts": 1}, {"contexts": 1}, {"contexts": 0}]
    expected = average(REPLIES, "samples", OWNED, slots)
    for seed in range(6):
        order = random.Random(seed).sample(range(3), 3)
        found = average([REPLIES[i] for i in order], "samples", OWNED, [slots[i] for i in order])
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_reply_may_be_of_many() -> None:
    replies = [reply(i, [i, -i], float(i), 1) for i in range(50)]
    learned = average(replies, "uniform", OWNED, [{"contexts": i % 3} for i in range(50)])
    # 0, 3, ... 48; 1, 4, ... 49; 2, 5, ... 47
    assert learned["contexts"].tolist() == [[24.0, -24.0], [25.0, -25.0], [24.5, -24.5]]
    assert learned["shared"].tolist() == [24.5]


# noise of central differential privacy


def test_the_noise_has_the_width_that_it_should() -> None:
    n = 40_000
    start = {"x": torch.zeros(n)}
    found = NoisyMean(start, start, clip=2.0, noise=3.0, count=4)
    for i in range(4):
        found.add(ClientUpdate(i, {"x": torch.full((n,), 1e-9)}, 1, 0.0), {})
    noise, expected = found.result()["x"], 3.0 * 2.0 / 4
    assert float(noise.std()) == pytest.approx(expected, rel=0.03)
    assert abs(float(noise.mean())) < 4 * expected / math.sqrt(n)
    assert not torch.equal(noise, found.result()["x"])


def test_one_reply_moves_the_noisy_mean_by_a_fixed_share() -> None:
    """Zero in place of an update moves the mean by C / n, however many replies there are."""
    start = {"x": torch.tensor([10.0, 0.0]), "y": torch.tensor([[5.0]])}
    long = {"x": torch.tensor([13.0, 4.0]), "y": torch.tensor([[17.0]])}  # (3, 4, 12): length 13
    for others in range(4):
        means = []
        for replies in ([], [long]):
            found = NoisyMean(start, start, clip=6.5, noise=1e-9, count=4)
            for i, learned in enumerate([*replies, *[start] * others]):  # at the start: no length
                found.add(ClientUpdate(i, learned, 1, 0.0), {})
            means.append(found.result())
        without, with_it = means
        assert (with_it["x"] - without["x"]).tolist() == pytest.approx([3 / 8, 4 / 8], abs=1e-6)
        assert (with_it["y"] - without["y"]).item() == pytest.approx(12 / 8, abs=1e-6)


def test_the_seed_does_not_draw_the_noise() -> None:
    start, found = {"x": torch.zeros(8)}, []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        found.append(NoisyMean(start, start, 1.0, 1.0, 3).result()["x"])
    assert not torch.equal(*found)


def test_noise_on_sums_is_not_divided() -> None:
    start, zero = {"x": torch.tensor([10.0, 0.0])}, {"x": torch.zeros(2)}
    found = NoisyMean(start, zero, clip=5.0, noise=1e-9, count=1)
    for i, sums in enumerate(([3.0, 4.0], [6.0, 8.0])):  # lengths 5 and 10
        found.add(ClientUpdate(i, {"x": torch.tensor(sums)}, 1, 0.0), {})
    assert found.result()["x"].tolist() == pytest.approx([16.0, 8.0], abs=1e-6)
