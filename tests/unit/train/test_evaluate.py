"""Accuracy, zero-shot accuracy and routing, from features made by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedapt.data.domains import Domain, Labelled
from fedapt.model.prompted_clip import GlobalModel
from fedapt.train.evaluate import DomainResult, Evaluation, accuracy, evaluate


class Flatten(nn.Module):
    """A text tower for contexts of one token: the token, at unit length."""

    eos = torch.zeros(2)  # two classes

    def forward(self, context: Tensor) -> Tensor:
        return normalize(context.squeeze(-2), dim=-1)


def make_model(temperature: float = 0.01) -> GlobalModel:
    """Features have 4 places: the class in the first two, the domain in the last two.

    Key 0 leaves the classes as they are; key 1 turns them over: V (1 + E) swaps sign.
    """
    context = torch.tensor([[[1.0, -1.0, 0.0, 0.0]], [[-1.0, 1.0, 0.0, 0.0]]])
    keys = torch.tensor([[[0.0, 0.0, 0.0, 0.0]], [[-2.0, -2.0, 0.0, 0.0]]])
    network = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    return GlobalModel(Flatten(), context, network, keys, temperature, 10.0)


ZERO_SHOT = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
EMPTY = Labelled(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))


def domain(name: str, rows: list[list[float]], labels: list[int]) -> Domain:
    return Domain(name, EMPTY, Labelled(torch.tensor(rows).float(), torch.tensor(labels)))


# shown as class 0, 0, 0, 1; routed to key 0, 0, 0, 1, which turns the last one over
PHOTO = domain(
    "photo",
    [[3, 1, 1, 0], [3, 1, 2, 0], [3, 1, 1, 0], [1, 3, 0, 1]],
    [0, 0, 1, 0],
)
# all routed to key 1, which turns both over
SKETCH = domain("sketch", [[3, 1, 0, 1], [1, 3, 0, 1]], [1, 1])


@pytest.mark.parametrize("exact", [False, True])
def test_accuracy_routing_and_zero_shot_by_hand(exact: bool) -> None:
    found = evaluate(make_model(), [PHOTO, SKETCH], ["p", "s"], ZERO_SHOT, exact=exact)
    assert found.domains == {
        "photo": DomainResult(accuracy=0.75, zero_shot=0.5, n=4),
        "sketch": DomainResult(accuracy=0.5, zero_shot=0.5, n=2),
    }
    assert found.routing == {"photo": {"p": 0.75, "s": 0.25}, "sketch": {"p": 0.0, "s": 1.0}}
    assert found.mean == 0.625
    assert found.zero_shot_mean == 0.5
    assert found.prompts == ("exact" if exact else "banks")


def test_means_are_over_domains_not_images() -> None:
    found = evaluate(make_model(), [PHOTO, SKETCH], ["p", "s"], ZERO_SHOT)
    assert found.mean == (0.75 + 0.5) / 2
    assert found.mean != (3 + 1) / 6


def test_the_shares_of_a_routing_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(37, 4, generator=generator)
    wild = Domain("wild", EMPTY, Labelled(rows, torch.zeros(37, dtype=torch.int64)))
    routing = evaluate(make_model(), [wild], ["p", "s"], ZERO_SHOT).routing["wild"]
    assert math.isclose(sum(routing.values()), 1.0, abs_tol=1e-6)
    assert routing["p"] == pytest.approx(float((rows[:, 2] > rows[:, 3]).double().mean()))
    assert 0 < routing["p"] < 1


def test_a_domain_that_has_no_key_is_measured_too() -> None:
    found = evaluate(make_model(), [PHOTO], ["p", "s"], ZERO_SHOT)
    unseen = evaluate(make_model(), [Domain("unseen", EMPTY, PHOTO.test)], ["p", "s"], ZERO_SHOT)
    assert unseen.domains["unseen"] == found.domains["photo"]


@pytest.mark.parametrize("exact", [False, True])
def test_a_domain_without_test_images_counts_in_no_mean(exact: bool) -> None:
    empty = Domain("empty", PHOTO.test, EMPTY)
    found = evaluate(make_model(), [PHOTO, empty], ["p", "s"], ZERO_SHOT, exact=exact)
    assert found.domains["empty"] == DomainResult(accuracy=0.0, zero_shot=0.0, n=0)
    assert found.routing["empty"] == {"p": 0.0, "s": 0.0}
    assert found.mean == 0.75
    assert found.zero_shot_mean == 0.5


def test_no_test_images_at_all_give_zero_and_no_error() -> None:
    found = evaluate(make_model(), [Domain("a", PHOTO.test, EMPTY)], ["p", "s"], ZERO_SHOT)
    assert (found.mean, found.zero_shot_mean) == (0.0, 0.0)


def test_with_soft_weights_banks_and_exact_prompts_may_differ() -> None:
    # halfway between the keys V (1 + E) is 0 and so is the banks' mixture
    model = make_model(temperature=1.0)
    weights = model.weights(SKETCH.test.features)
    assert float(weights.max()) < 0.9
    for exact in (False, True):
        found = evaluate(model, [SKETCH], ["p", "s"], ZERO_SHOT, exact=exact)
        assert found.domains["sketch"].accuracy == 0.5
        assert found.routing["sketch"] == {"p": 0.0, "s": 1.0}


@pytest.mark.parametrize(
    ("labels", "expected"), [([0, 1, 1], 1.0), ([0, 1, 0], 2 / 3), ([1, 0, 0], 0.0)]
)
def test_accuracy_is_the_share_of_right_rows(labels: list[int], expected: float) -> None:
    logits = torch.tensor([[2.0, 1.0], [-2.0, -1.0], [0.0, 0.1]])
    assert accuracy(logits, torch.tensor(labels)) == pytest.approx(expected)


def test_accuracy_without_rows_is_zero() -> None:
    assert accuracy(torch.empty(0, 2), torch.empty(0, dtype=torch.int64)) == 0.0


def test_an_evaluation_is_json() -> None:
    found = evaluate(make_model(), [PHOTO], ["p", "s"], ZERO_SHOT)
    assert json.loads(json.dumps(found.to_dict())) == {
        "mean": 0.75,
        "zero_shot_mean": 0.5,
        "domains": {"photo": {"accuracy": 0.75, "zero_shot": 0.5, "n": 4}},
        "routing": {"photo": {"p": 0.75, "s": 0.25}},
        "prompts": "banks",
    }
    assert isinstance(found, Evaluation)
