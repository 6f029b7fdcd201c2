"""What holds for every method of the registry."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fedapt.cli.app import main
from fedapt.core import names
from fedapt.core.names import FUSED_METHODS
from fedapt.model.backbone import Backbone
from fedapt.training.methods import METHODS, Method
from tests.support.methods import make_config, make_setting, one_round, rows_of

EVERY = pytest.mark.parametrize("name", METHODS)
TRAINED = pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].trains])


@pytest.fixture
def build(tiny_backbone: Backbone, tiny_images: Path) -> Any:
    def build(name: str, **settings: Any) -> Method:
        settled = METHODS[name].resolve(make_config({"train.method": name} | settings))
        paths = sorted(tiny_images.glob("*/*/*.png"))[::4]
        labels = torch.tensor([i % 3 for i in range(len(paths))])
        return METHODS[name](
            make_setting(tiny_backbone, (6, 4), config=settled, paths=paths, labels=labels)
        )

    return build


def test_the_configuration_names_the_same_methods() -> None:
    assert tuple(METHODS) == tuple(names.METHODS)
    assert set(FUSED_METHODS) < set(METHODS)
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


@EVERY
def test_a_method_says_what_it_learns_and_whose_it_is(name: str) -> None:
    method = METHODS[name]
    assert str(inspect.getdoc(method)).startswith("Learned: ")
    assert re.fullmatch(r"arXiv \d{4}\.\d{4,5}", method.source) or name == "local"
    assert set(method.owned.values()) <= {"key", "client"}


def test_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == list(METHODS)
    assert rows[2]["trains"].startswith("nothing")
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert all(method.title.split()[0] in shown for method in METHODS.values())


@EVERY
@pytest.mark.parametrize("rounds", [3, 50])
def test_settling_twice_is_settling_once(name: str, rounds: int) -> None:
    """A resumed run settles what was settled, with the command line over it once more."""
    asked = {"train.rounds": rounds, "prompt.context_length": 24, "train.batch_size": 256}
    once = METHODS[name].resolve(make_config({"train.method": name} | asked))
    assert METHODS[name].resolve(once) == once
    again = dataclasses.replace(
        once,
        train=dataclasses.replace(once.train, rounds=rounds, batch_size=256),
        prompt=dataclasses.replace(once.prompt, context_length=24),
    )
    assert METHODS[name].resolve(again) == once


@TRAINED
def test_a_round_changes_every_tensor_and_keeps_the_shapes(name: str, build: Any) -> None:
    method = build(name, **{"unsupervised.confidence": 0.3})
    start = method.begin()
    kept = {n: t.clone() for n, t in start.items()}
    found = one_round(method, start).learned
    assert found.keys() == start.keys() == method.begin().keys()
    changed = 0
    for n, tensor in found.items():
        assert (tensor.shape, tensor.dtype) == (start[n].shape, torch.float32)
        assert torch.equal(start[n], kept[n])
        changed += not torch.equal(tensor, start[n])
    assert changed == len(start)


@TRAINED
def test_a_prediction_before_training_changes_nothing(name: str, build: Any) -> None:
    fresh, method = build(name), build(name)
    start = method.begin()
    method.predictor(start)(rows_of(method.setting, [0, 1]), 0)
    found = one_round(method, start).learned
    expected = one_round(fresh, start).learned
    assert all(torch.equal(found[n], tensor) for n, tensor in expected.items())


@EVERY
def test_the_prediction_needs_no_label(name: str, build: Any) -> None:
    method = build(name)
    images = rows_of(method.setting, [0, 1, 2])
    other = dataclasses.replace(images, labels=torch.full((3,), -1))
    predict = method.predictor(method.begin())
    for domain in (0, 1, None):
        assert torch.equal(predict(images, domain), predict(other, domain))
        assert predict(images, domain).shape[-2:] == (3, 3)


@EVERY
def test_a_client_has_its_own_slices_and_what_all_share(name: str, build: Any) -> None:
    method = build(name)
    learned = method.begin()
    client = dataclasses.replace(method.setting.clients[1], index=1, key=0)
    slots = method.slots(client)
    assert slots == {n: {"key": 0, "client": 1}[owner] for n, owner in method.owned.items()}
    share = method.share(learned, client)
    assert share.keys() == learned.keys()
    for n, tensor in share.items():
        expected = learned[n][slots[n]] if n in slots else learned[n]
        assert torch.equal(tensor, expected)
