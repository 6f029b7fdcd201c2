"""The closed form through a federation's round, against least squares on all images."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from fedapt.core.config import Config
from fedapt.core.errors import ConfigError
from fedapt.model.ridge import CONSTANT
from fedapt.run.aggregation import check_aggregation
from fedapt.training.aggregate import Total
from fedapt.training.client import ClientUpdate
from fedapt.training.methods import METHODS, Method, Setting
from fedapt.training.methods import analytic as module
from tests.support.methods import C, W, make_config, make_setting, one_round, rows_of

BOTH = pytest.mark.parametrize("name", ["analytic", "adaptive-analytic"])


def build(name: str, **settings: Any) -> Method:
    config = METHODS[name].resolve(make_config({"train.method": name}))
    return METHODS[name](make_setting(config=config, **settings))


def extended(setting: Setting, rows: Any) -> np.ndarray:
    f = setting.table.features[rows].double().numpy()
    unit = f / np.linalg.norm(f, axis=1, keepdims=True)
    return np.concatenate([unit, np.full((len(f), 1), 0.3)], axis=1)


def ridge(x: np.ndarray, y: np.ndarray, penalty: float, pull: np.ndarray) -> np.ndarray:
    root = penalty**0.5
    further = np.concatenate([x, root * np.eye(x.shape[1])])
    found: np.ndarray = np.linalg.lstsq(further, np.concatenate([y, root * pull]), rcond=None)[0]
    return found


def solve_by_hand(setting: Setting) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """W_0, each domain's W_d, and R, from the clients' images themselves."""
    text = setting.zero_shot.double().numpy()
    pull = np.zeros((W + 1, C))
    pull[:-1] = 3 * (text - text.mean(0)).T
    parts = []
    for domain in range(setting.n_keys):
        rows = torch.cat([c.data.rows for c in setting.clients if c.key == domain])
        y = np.where(np.arange(C) == setting.table.labels[rows].numpy()[:, None], 1.0, -1.0)
        parts.append((extended(setting, rows), y))
    x, y = (np.concatenate(values) for values in zip(*parts, strict=True))
    pooled = ridge(x, y, 2.0, pull)
    own = [ridge(part, of, 0.5, pooled) for part, of in parts]
    mean = len(x) / len(parts)
    weights = np.concatenate([np.full((len(p), 1), (mean / len(p)) ** 0.5) for p, _ in parts])
    which = np.concatenate(
        [np.tile(np.eye(len(parts))[d], (len(p), 1)) for d, (p, _) in enumerate(parts)]
    )
    router = ridge(weights * x, weights * which, 0.3, np.zeros((W + 1, len(parts))))
    return pooled, own, router


def test_the_pooled_answer_is_ridge_regression_on_all_images() -> None:
    method = build("analytic", sizes=(6, 4, 9))
    learned = one_round(method, method.begin()).learned
    images = rows_of(method.setting, range(12))
    pooled, _, _ = solve_by_hand(method.setting)
    expected = 8.0 * extended(method.setting, list(range(12))) @ pooled
    found = method.predictor(learned)(images, None)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)


def test_the_adaptive_answer_is_gated_by_the_router() -> None:
    method = build("adaptive-analytic", sizes=(6, 4, 9), domains=(0, 1, 0))
    learned = one_round(method, method.begin()).learned
    images = rows_of(method.setting, range(12))
    pooled, own, router = solve_by_hand(method.setting)
    x = extended(method.setting, list(range(12)))
    scores = np.concatenate([x @ router, np.full((12, 1), 0.8)], axis=1)
    powers = np.exp((scores - scores.max(1, keepdims=True)) / 0.1)
    weights = powers / powers.sum(1, keepdims=True)
    answers = np.stack([x @ w for w in (*own, pooled)])
    expected = 8.0 * np.einsum("nk,knc->nc", weights, answers)
    np.testing.assert_allclose(method.routing(learned, images.features), weights, atol=1e-4)
    found = method.predictor(learned)(images, 0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-3)
    assert method.bank_names(("a", "b")) == ("a", "b", "pooled")


@BOTH
def test_the_result_does_not_depend_on_how_images_are_spread(name: str) -> None:
    whole = build(name, sizes=(12,), domains=(0,))
    spread = build(name, sizes=(5, 3, 4), domains=(0, 0, 0))
    # the same twelve images
    rows = whole.setting.clients[0].data.rows
    parts = torch.split(rows, [5, 3, 4])
    clients = tuple(
        dataclasses.replace(c, data=dataclasses.replace(c.data, rows=part))
        for c, part in zip(spread.setting.clients, parts, strict=True)
    )
    spread = METHODS[name](dataclasses.replace(spread.setting, clients=clients))
    spread.setting.__dict__["zero_shot"] = whole.setting.zero_shot
    found = one_round(spread, spread.begin()).learned
    expected = one_round(whole, whole.begin()).learned
    for tensor, other in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=0, atol=1e-7)


@BOTH
def test_a_run_has_one_round_of_every_client(name: str) -> None:
    asked = make_config({"train.method": name, "train.rounds": 50, "federation.sampled": 1})
    resolved = METHODS[name].resolve(asked)
    assert (resolved.train.rounds, resolved.train.weighting) == (1, "uniform")
    assert (resolved.federation.sampled, resolved.federation.sampled_per_domain) == (0, 0)
    method = METHODS[name](make_setting(config=resolved))
    done = one_round(method, method.begin())
    (record,) = done.records
    assert (record["round"], record["clients"]) == (1, 2)


def test_an_owners_sums_are_added_to_its_own_slice() -> None:
    start = {"gram": torch.tensor([[1.0], [2.0]])}
    total = Total(start)
    total.add(ClientUpdate(0, {"gram": torch.tensor([4.0])}, 1, 0.0), {"gram": 1})
    total.add(ClientUpdate(1, {"gram": torch.tensor([8.0])}, 1, 0.0), {"gram": 1})
    assert total.result()["gram"].tolist() == [[1.0], [14.0]]
    assert start["gram"].tolist() == [[1.0], [2.0]]
    shared = Total({"gram": torch.tensor([1.0])})
    for value in (4.0, 8.0):
        shared.add(ClientUpdate(0, {"gram": torch.tensor([value])}, 1, 0.0), {})
    assert shared.result()["gram"].tolist() == [13.0]


def test_updates_that_are_shortened_are_added_up_too() -> None:
    method = build("analytic", sizes=(6, 4))
    config = dataclasses.replace(method.setting.config.federation, clip=1e6)
    method = METHODS["analytic"](replace_federation(method.setting, config))
    check_aggregation(method)
    start = method.begin()
    found = one_round(method, start).learned
    plain = one_round(build("analytic", sizes=(6, 4)), start).learned
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("analytic", {"aggregation": "median"}), ("adaptive-analytic", {"clip": 1.0})],
)
def test_sums_are_neither_outvoted_nor_shortened_by_domain(
    name: str, changes: dict[str, Any]
) -> None:
    method = build(name)
    config = dataclasses.replace(method.setting.config.federation, **changes)
    method = METHODS[name](replace_federation(method.setting, config))
    with pytest.raises(ConfigError, match="whose clients send sums"):
        check_aggregation(method)


def replace_federation(setting: Setting, federation: Any) -> Setting:
    config: Config = dataclasses.replace(setting.config, federation=federation)
    return dataclasses.replace(setting, config=config)


def test_the_constants_are_those_of_the_equations() -> None:
    assert (CONSTANT, module.PENALTY, module.DOMAIN_PENALTY) == (0.3, 2.0, 0.5)
    assert (module.ROUTER_PENALTY, module.PRIOR) == (0.3, 3.0)
    assert (module.TEMPERATURE, module.POOLED_SCORE, module.LOGIT_SCALE) == (0.1, 0.8, 8.0)
