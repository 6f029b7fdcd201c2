"""Accuracy, zero-shot accuracy and routing, from features made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedapt.core.report import Reporter
from fedapt.data.domains import Domain, ImageSet, ImageTable, Labelled
from fedapt.training.evaluate import (
    DomainResult,
    Evaluation,
    accuracy,
    make_route,
    measure,
    tell_low_routing,
)
from fedapt.training.evaluate import evaluate as evaluate_method
from fedapt.training.loop import Measured
from fedapt.training.methods.fedapt import ADAPTIVE_NETWORK, META_PROMPT, FedAPT
from fedapt.training.methods.zero_shot import ZeroShot


class Flatten(nn.Module):
    """A text tower for contexts of one token: the token, at unit length."""

    n_classes = 2

    def forward(self, context: Tensor) -> Tensor:
        return normalize(context.squeeze(-2), dim=-1)


# Features have 4 places: the class in the first two, the domain in the last two.
LEARNED = {
    META_PROMPT: torch.tensor([[[1.0, -1.0, 0.0, 0.0]], [[-1.0, 1.0, 0.0, 0.0]]]),
    ADAPTIVE_NETWORK: torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]),
}
# Key 0 leaves the classes as they are; key 1 turns them over: V (1 + E) swaps sign.
KEYS = torch.tensor([[[0.0, 0.0, 0.0, 0.0]], [[-2.0, -2.0, 0.0, 0.0]]])
ZERO_SHOT = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])


def make_setting(temperature: float = 0.01) -> Any:
    return SimpleNamespace(
        text=Flatten(),
        keys=KEYS,
        zero_shot=ZERO_SHOT,
        backbone=SimpleNamespace(logit_scale=10.0),
        config=SimpleNamespace(prompt=SimpleNamespace(temperature=temperature)),
    )


def evaluate(
    domains: list[Domain],
    names: list[str],
    *,
    exact: bool = False,
    temperature: float = 0.01,
) -> Evaluation:
    method = FedAPT(make_setting(temperature))
    model = method.global_model(LEARNED)
    predict = (lambda images, _: model.exact_logits(images.features)) if exact else None
    trained = [domain.name for domain in domains]
    return evaluate_method(method, LEARNED, domains, trained, names, predict=predict)


def image_set(rows: list[list[float]], labels: list[int]) -> ImageSet:
    """The second half of a table; the first half has other labels."""
    n = len(rows)
    features = torch.tensor(rows).float().reshape(n, 4)
    table = ImageTable(
        tuple(Path(f"{i}.png") for i in range(2 * n)),
        torch.cat([features, features]),
        torch.tensor([1 - label for label in labels] + labels, dtype=torch.int64),
    )
    return ImageSet(table, torch.arange(n, 2 * n))


EMPTY = image_set([], [])


def domain(name: str, rows: list[list[float]], labels: list[int]) -> Domain:
    return Domain(name, EMPTY, image_set(rows, labels), EMPTY)


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
    found = evaluate([PHOTO, SKETCH], ["p", "s"], exact=exact)
    assert found.domains == {
        "photo": DomainResult(accuracy=0.75, zero_shot=0.5, n=4),
        "sketch": DomainResult(accuracy=0.5, zero_shot=0.5, n=2),
    }
    assert found.routing == {"photo": {"p": 0.75, "s": 0.25}, "sketch": {"p": 0.0, "s": 1.0}}
    assert found.mean == 0.625
    assert found.zero_shot_mean == 0.5
    assert found.prompts == ("exact" if exact else "banks")


def test_means_are_over_domains_not_images() -> None:
    found = evaluate([PHOTO, SKETCH], ["p", "s"])
    assert found.mean == (0.75 + 0.5) / 2
    assert found.mean != (3 + 1) / 6


def test_the_shares_of_a_routing_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(37, 4, generator=generator)
    wild = domain("wild", rows.tolist(), [0] * 37)
    routing = evaluate([wild], ["p", "s"]).routing["wild"]
    assert math.isclose(sum(routing.values()), 1.0, abs_tol=1e-6)
    assert routing["p"] == pytest.approx(float((rows[:, 2] > rows[:, 3]).double().mean()))
    assert 0 < routing["p"] < 1


def test_a_domain_that_has_no_key_is_measured_too() -> None:
    found = evaluate([PHOTO], ["p", "s"])
    unseen = evaluate([Domain("unseen", EMPTY, PHOTO.test, EMPTY)], ["p", "s"])
    assert unseen.domains["unseen"] == found.domains["photo"]


@pytest.mark.parametrize("exact", [False, True])
def test_a_domain_without_test_images_counts_in_no_mean(exact: bool) -> None:
    empty = Domain("empty", PHOTO.test, EMPTY, EMPTY)
    found = evaluate([PHOTO, empty], ["p", "s"], exact=exact)
    assert found.domains["empty"] == DomainResult(accuracy=0.0, zero_shot=0.0, n=0)
    assert found.routing["empty"] == {"p": 0.0, "s": 0.0}
    assert found.mean == 0.75
    assert found.zero_shot_mean == 0.5


def test_no_test_images_at_all_give_zero_and_no_error() -> None:
    found = evaluate([Domain("a", PHOTO.test, EMPTY, EMPTY)], ["p", "s"])
    assert (found.mean, found.zero_shot_mean) == (0.0, 0.0)


def test_with_soft_weights_banks_and_exact_prompts_may_differ() -> None:
    # halfway between the keys V (1 + E) is 0 and so is the banks' mixture
    model = FedAPT(make_setting(temperature=1.0)).global_model(LEARNED)
    weights = model.weights(SKETCH.test.load().features)
    assert float(weights.max()) < 0.9
    for exact in (False, True):
        found = evaluate([SKETCH], ["p", "s"], exact=exact, temperature=1.0)
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


def test_the_accuracy_of_several_models_is_their_mean() -> None:
    logits = torch.tensor([[2.0, 1.0], [-2.0, -1.0], [0.0, 0.1]])
    models = torch.stack([logits, -logits, logits])
    assert accuracy(models, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)
    assert accuracy(models, torch.tensor([0, 1, 0])) == pytest.approx((2 / 3 + 1 / 3 + 2 / 3) / 3)
    assert accuracy(models[:, :0], torch.empty(0, dtype=torch.int64)) == 0.0


# what is measured while training


VALIDATED = Domain(
    "photo", EMPTY, PHOTO.test, image_set([[3, 1, 1, 0], [1, 3, 2, 0], [1, 3, 1, 0]], [0, 1, 0])
)


def test_test_and_validation_images_are_measured_apart() -> None:
    predict = FedAPT(make_setting()).predictor(LEARNED)
    found = measure(predict, [VALIDATED, SKETCH], ["photo", "sketch"])
    assert found.test == {"photo": 0.75, "sketch": 0.5}
    assert found.validation == {"photo": pytest.approx(2 / 3)}  # the sketches have none
    assert measure(predict, [PHOTO], ["photo"]).validation == {}
    assert measure(predict, [Domain("a", PHOTO.test, EMPTY, EMPTY)], ["a"]) == Measured({}, {})


def test_a_domain_that_trains_nothing_has_no_say_in_the_choice_of_a_round() -> None:
    predict = FedAPT(make_setting()).predictor(LEARNED)
    found = measure(predict, [VALIDATED, SKETCH], ["sketch"])
    assert found.test == {"photo": 0.75, "sketch": 0.5}
    assert found.validation == {}


def test_a_predictor_is_told_the_index_among_the_domains_that_train() -> None:
    told: list[tuple[int, int | None]] = []

    def predict(images: Labelled, index: int | None) -> Tensor:
        told.append((len(images), index))
        return images.features[:, :2]

    domains = [VALIDATED, Domain("new", EMPTY, SKETCH.test, VALIDATED.validation), SKETCH]
    measure(predict, domains, ["sketch", "photo"])
    assert sorted(told, key=str) == [(2, 0), (2, None), (3, 1), (4, 1)]
    told.clear()
    method = FedAPT(make_setting())
    evaluate_method(method, LEARNED, domains, ["sketch", "photo"], ["p", "s"], predict=predict)
    assert told == [(4, 1), (2, None), (2, 0)]  # test images alone


def test_what_was_measured_before_is_not_measured_again() -> None:
    def refuse(images: Labelled, index: int | None) -> Tensor:
        raise AssertionError("known already")

    method, known = FedAPT(make_setting()), {"photo": 0.25, "sketch": 1.0}
    domains = [PHOTO, SKETCH, Domain("empty", PHOTO.test, EMPTY, EMPTY)]
    found = evaluate_method(
        method, LEARNED, domains, ["photo", "sketch"], ["p", "s"], predict=refuse, known=known
    )
    assert {name: d.accuracy for name, d in found.domains.items()} == known | {"empty": 0.0}
    assert found.mean == 0.625
    assert found.zero_shot_mean == 0.5
    assert found.routing["photo"] == {"p": 0.75, "s": 0.25}


def test_a_method_without_keys_has_no_routing() -> None:
    found = evaluate_method(ZeroShot(make_setting()), {}, [PHOTO, SKETCH], ["photo", "sketch"], [])
    assert found.title == "zero-shot"
    assert found.routing == {}
    assert found.mean == found.zero_shot_mean == 0.5
    assert found.domains["photo"] == DomainResult(accuracy=0.5, zero_shot=0.5, n=4)


def test_an_evaluation_is_json() -> None:
    found = evaluate([PHOTO], ["p", "s"])
    assert json.loads(json.dumps(found.to_dict())) == {
        "method": "FedAPT",
        "mean": 0.75,
        "zero_shot_mean": 0.5,
        "domains": {"photo": {"accuracy": 0.75, "zero_shot": 0.5, "n": 4}},
        "routing": {"photo": {"p": 0.75, "s": 0.25}},
        "routed": {},
        "prompts": "banks",
        "calibration_error": {"photo": pytest.approx(found.calibration["photo"])},
    }
    assert isinstance(found, Evaluation)


def test_the_calibration_error_of_test_images_by_hand() -> None:
    # equal logits of two classes: confidence 0.5; the first class is taken
    def undecided(images: Labelled, index: int | None) -> Tensor:
        return torch.zeros(len(images), 2)

    found = measure(undecided, [PHOTO, SKETCH], ["photo", "sketch"])
    # photo has two images of class 0 in four, less one: |3/4 - 1/2|; sketch none of two
    assert found.calibration == {"photo": pytest.approx(0.25), "sketch": pytest.approx(0.5)}
    assert found.routed == {}
    assert found.to_record()["calibration_error"] == found.calibration

    def several(images: Labelled, index: int | None) -> Tensor:
        sure = torch.tensor([[99.0, 0.0]]).expand(len(images), -1)  # wrong of sketch: error 1
        return torch.stack([torch.zeros(len(images), 2), sure])

    assert measure(several, [SKETCH], ["sketch"]).calibration["sketch"] == pytest.approx(0.75)


def test_a_rounds_routing_is_recorded() -> None:
    def predict(images: Labelled, index: int | None) -> Tensor:
        return torch.zeros(len(images), 2)

    route = make_route(FedAPT(make_setting()), LEARNED, ["photo", "sketch"])
    found = measure(predict, [PHOTO, SKETCH], ["photo", "sketch"], route)
    assert found.routed == {"photo": 0.75, "sketch": 1.0}
    assert found.to_record()["routed"] == found.routed
    no_keys = make_route(ZeroShot(make_setting()), {}, [])
    assert "routed" not in measure(predict, [PHOTO], ["photo"], no_keys).to_record()


# routing as a figure


def routed_evaluation(routing: dict[str, dict[str, float]], n: int = 5) -> Evaluation:
    return Evaluation("a method", {d: DomainResult(1.0, 1.0, n) for d in routing}, routing)


def test_the_share_of_images_that_go_to_their_own_domain() -> None:
    found = routed_evaluation(
        {
            "photo": {"photo": 0.75, "sketch": 0.25, "pooled": 0.0},
            # a pooled bank claims an image for no domain
            "sketch": {"photo": 0.1, "sketch": 0.5, "pooled": 0.4},
            "left out": {"photo": 0.5, "sketch": 0.5, "pooled": 0.0},
        }
    )
    assert found.routed == {"photo": 0.75, "sketch": pytest.approx(0.5 / 0.6)}
    assert found.to_dict()["routed"] == found.routed
    shared = routed_evaluation({"a": {"a+b": 0.5, "c/1": 0.5}, "c": {"a+b": 0.5, "c/1": 0.5}})
    assert shared.routed == {"a": 0.5, "c": 0.5}
    assert routed_evaluation({}).routed == {}
    assert routed_evaluation({"photo": {"photo": 0.0}}, n=0).routed == {}


def test_low_routing_is_told_with_what_to_do() -> None:
    lines: list[str] = []

    class Told(Reporter):
        def message(self, text: str) -> None:
            lines.append(text)

    tell_low_routing(routed_evaluation({"a": {"a": 0.8, "b": 0.2}, "b": {"a": 0, "b": 1}}), Told())
    assert lines == []
    tell_low_routing(
        routed_evaluation({"a": {"a": 0.79, "b": 0.21}, "b": {"a": 0, "b": 1}}), Told()
    )
    (line,) = lines
    assert line.startswith(
        "routing: few test images go to their own domain (a 79 %; expected 80 %)"
    )
    assert "`routed_to` does not say which domain an image is of" in line
    assert "Raise train.router_lr" in line
