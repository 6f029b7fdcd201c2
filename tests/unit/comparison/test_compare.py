"""Comparisons: which cells are run, what is chosen by what, and that finished cells are kept."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from statistics import fmean, stdev

import pytest

from fedapt.comparison.bench import Bench
from fedapt.comparison.plan import (
    DIRICHLET,
    FEW_SHOT,
    IN_DOMAIN,
    LEAVE_ONE_OUT,
    Cell,
    Plan,
    shared_settings,
)
from fedapt.comparison.result import CellResult
from fedapt.comparison.run import Comparison, compare
from fedapt.comparison.table import build_rows, spread, to_csv, to_json
from fedapt.core.config import Config, DataConfig, FederationConfig, flatten, read_config
from fedapt.core.errors import DataError, UsageError
from fedapt.core.report import Reporter
from tests.support.comparing import cells_of, comparison_config

DOMAINS = ("photo", "sketch")


@pytest.fixture
def config(tiny_clip: Path, tiny_images: Path) -> Config:
    return comparison_config(tiny_clip, tiny_images)


# the plan


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            {"methods": ("fedapt", "fedap")},
            r"^methods: found 'fedap'; expected different names among",
        ),
        ({"methods": ()}, "^methods: found nothing"),
        ({"methods": ("fedapt", "fedapt")}, r"^methods: found fedapt, fedapt"),
        (
            {"protocols": ("indomain",)},
            r"^protocols: found 'indomain'; expected different names among",
        ),
    ],
)
def test_unknown_names_are_refused(names: dict[str, tuple[str, ...]], text: str) -> None:
    plan = {"methods": ("fedapt",), "protocols": (IN_DOMAIN,)} | names
    with pytest.raises(UsageError, match=text):
        Plan(**plan, seeds=(0,), rates=(0.1,))


def test_leave_one_out_has_a_fold_for_each_domain() -> None:
    plan = Plan(("promptfl",), (LEAVE_ONE_OUT,), (0, 1), (0.1,))
    trials = plan.trials(LEAVE_ONE_OUT, "promptfl", (0.1, 0.2), DOMAINS)
    assert {tuple(cell.lr for cell in trial) for trial in trials} == {(0.1, 0.2)}
    cells = [trial[0] for trial in trials]
    assert [(c.fold, c.seed) for c in cells] == [
        ("photo", 0),
        ("photo", 1),
        ("sketch", 0),
        ("sketch", 1),
    ]
    assert str(cells[3].path) == "cells/leave-one-out/sketch/promptfl/seed-1-lr-0.1.json"
    assert len(plan.trials(IN_DOMAIN, "promptfl", (0.1,), DOMAINS)) == 2


def test_a_cell_sets_what_the_protocol_says() -> None:
    def configured(protocol: str, base: Config | None = None, fold: str = "") -> Config:
        return Cell(protocol, fold, "adapt", 3, 0.2).configure(base or Config())

    plain = configured(IN_DOMAIN)
    assert (plain.train.method, plain.train.seed, plain.train.lr) == ("adapt", 3, 0.2)
    assert (plain.data.split_seed, plain.data.leave_out) == (3, "")
    assert plain.federation == FederationConfig()
    assert configured(LEAVE_ONE_OUT, fold="photo").data.leave_out == "photo"
    assert configured(FEW_SHOT).data.shots == 8
    assert configured(FEW_SHOT, Config(data=DataConfig(shots=2))).data.shots == 2
    several = configured(DIRICHLET).federation
    assert (several.clients_per_domain, several.sampled_per_domain, several.alpha) == (5, 1, 0.5)
    own = Config(federation=FederationConfig(clients_per_domain=3, sampled=4))
    several = configured(DIRICHLET, own).federation
    assert (several.clients_per_domain, several.sampled_per_domain, several.sampled) == (3, 0, 4)


def test_what_one_protocol_asks_for_does_not_reach_the_others() -> None:
    base = Config(
        data=DataConfig(shots=4),
        federation=FederationConfig(clients_per_domain=5, sampled_per_domain=1, alpha=0.1),
    )
    plain, few, several = (
        Cell(protocol, "", "adapt", 0, 0.2).configure(base)
        for protocol in (IN_DOMAIN, FEW_SHOT, DIRICHLET)
    )
    assert (plain.data.shots, few.data.shots, several.data.shots) == (0, 4, 0)
    for alone in (plain, few):
        assert alone.federation == FederationConfig(alpha=0.1)
    assert several.federation == base.federation


@pytest.mark.parametrize(
    "setting",
    ["train.seed=3", "train.method=local", "data.split_seed=3", "data.leave_out=photo"],
)
def test_what_cells_decide_on_is_refused_as_a_setting(
    config: Config, tmp_path: Path, setting: str
) -> None:
    name, value = setting.split("=")
    given = read_config(None, [setting], {"data.root": config.data.root})
    plan = Plan(("zero-shot",), (IN_DOMAIN,), (0,), (0.1,))
    with pytest.raises(UsageError, match=rf"{name} = '?{value}'?: found a setting that differs"):
        compare(given, plan, tmp_path, "cpu", Reporter())
    assert list(tmp_path.iterdir()) == []
    assert name not in shared_settings(given)
    assert shared_settings(given)["train.rounds"] == 50
    folder = read_config(None, [], {"model.name": "/home/ada/clip"})
    assert shared_settings(folder)["model.name"] == ""  # results are there to be shown
    assert not {"train.lr", "data.root"} & shared_settings(given).keys()


# running


def test_a_damaged_cell_is_run_again(config: Config, tmp_path: Path) -> None:
    plan = Plan(("linear-probe",), (IN_DOMAIN,), (0,), (0.1,))
    first = compare(config, plan, tmp_path, "cpu", Reporter())
    (path,) = (tmp_path / name for name in cells_of(tmp_path))
    path.write_text(path.read_text()[:-30])
    again = compare(config, plan, tmp_path, "cpu", Reporter())
    (one,), (two,) = first.results.values(), again.results.values()
    assert dataclasses.replace(one, seconds=0) == dataclasses.replace(two, seconds=0)
    json.loads(path.read_text())


def test_other_settings_need_another_folder(config: Config, tmp_path: Path) -> None:
    plan = Plan(("zero-shot",), (IN_DOMAIN,), (0,), (0.1,))
    compare(config, plan, tmp_path, "cpu", Reporter())
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, rounds=3))
    with pytest.raises(UsageError, match=r"found a comparison with other settings; expected those"):
        compare(other, plan, tmp_path, "cpu", Reporter())


def test_several_rates_need_validation_images(config: Config, tmp_path: Path) -> None:
    plan = Plan(("promptfl",), (IN_DOMAIN,), (0,), (0.1, 0.2))
    data = dataclasses.replace(config.data, validation_fraction=0.0)
    with pytest.raises(UsageError, match=r"2 learning rates and no validation images"):
        compare(dataclasses.replace(config, data=data), plan, tmp_path, "cpu", Reporter())
    assert list(tmp_path.iterdir()) == []


def test_each_trial_takes_the_rate_that_is_best_on_its_own_validation_images(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {  # fold and seed -> validation by rate; test accuracy says the contrary
        ("photo", 0): (0.5, 0.7, 0.6),
        ("photo", 1): (0.6, 0.5, 0.55),
        ("sketch", 0): (0.1, 0.2, 0.3),
        ("sketch", 1): (0.4, 0.4, 0.1),  # level: the first of them
    }
    rates = (0.1, 0.2, 0.3)

    def pretend(bench: object, cell: Cell) -> CellResult:
        score = scores[cell.fold, cell.seed][rates.index(cell.lr)]
        return CellResult(cell, dict.fromkeys(DOMAINS, 1 - score), validation=score)

    monkeypatch.setattr(Bench, "_train", pretend)
    plan = Plan(("promptfl",), (LEAVE_ONE_OUT,), (0, 1), rates)
    found = compare(config, plan, tmp_path, "cpu", Reporter())
    chosen = found.chosen[LEAVE_ONE_OUT, "promptfl"]
    assert [(c.fold, c.seed, c.lr) for c in chosen] == [
        ("photo", 0, 0.2),
        ("photo", 1, 0.1),
        ("sketch", 0, 0.3),
        ("sketch", 1, 0.1),
    ]
    assert len(found.results) == 3 * 4  # every rate was tried, and is kept
    (row,) = build_rows(found)
    assert row.rates == rates
    assert row.domains["photo"].mean == pytest.approx(fmean([0.3, 0.4]))


def test_a_rate_that_diverges_is_not_chosen(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretend(bench: object, cell: Cell) -> CellResult:
        if cell.lr == 0.1:
            return CellResult(cell, error="round 1: found a loss of nan")
        return CellResult(cell, dict.fromkeys(DOMAINS, 0.5))  # and no better than nothing

    monkeypatch.setattr(Bench, "_train", pretend)
    plan = Plan(("promptfl",), (IN_DOMAIN,), (0,), (0.1, 0.2))
    found = compare(config, plan, tmp_path, "cpu", Reporter())
    assert [cell.lr for cell in found.chosen[IN_DOMAIN, "promptfl"]] == [0.2]


def test_labels_choose_nothing_for_a_method_that_reads_none(config: Config, tmp_path: Path) -> None:
    """Neither a rate, nor a round, nor when to stop."""
    train = dataclasses.replace(config.train, lr=0.07, rounds=4, patience=1)
    config = dataclasses.replace(config, train=train)
    plan = Plan(("fedapt-unsupervised", "zero-shot"), (IN_DOMAIN,), (0, 1), (0.1, 0.2))
    found = compare(config, plan, tmp_path, "cpu", Reporter())
    assert {cell.lr for cell in found.results} == {0.07}
    unsupervised = found.chosen_results(IN_DOMAIN, "fedapt-unsupervised")
    assert [(r.best_round, len(r.curve)) for r in unsupervised] == [(4, 4), (4, 4)]
    for result in unsupervised:
        assert result.accuracy == result.curve[-1][2]
    for result in found.chosen_results(IN_DOMAIN, "zero-shot"):
        assert result.accuracy == result.zero_shot
        assert (result.parameters, result.bytes_sent, result.curve) == (0, 0, [])


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"data.test_fraction": 0.0}, r"photo, seed 0: found no test image; expected at least one"),
        ({"data.validation_fraction": 0.01}, r"photo, seed 0: found no validation image;"),
        ({"data.shots": 7}, r"data\.shots = 7: found"),
    ],
)
def test_what_no_split_can_do_is_said_before_anything_is_trained(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: dict[str, object],
    text: str,
) -> None:
    def fail(bench: object, cell: Cell) -> CellResult:
        raise AssertionError("trained")

    monkeypatch.setattr(Bench, "_train", fail)
    given = read_config(None, [], flatten(config) | overrides)
    plan = Plan(("promptfl",), (IN_DOMAIN, LEAVE_ONE_OUT, FEW_SHOT), (0,), (0.1,))
    with pytest.raises(DataError, match=text):
        compare(given, plan, tmp_path, "cpu", Reporter())
    assert cells_of(tmp_path) == {}


def test_a_cell_that_diverges_is_a_result(config: Config, tmp_path: Path) -> None:
    plan = Plan(("linear-probe",), (IN_DOMAIN,), (0,), (1e3,))
    train = dataclasses.replace(config.train, proximal=1e6, local_epochs=5)
    found = compare(dataclasses.replace(config, train=train), plan, tmp_path, "cpu", Reporter())
    (result,) = found.results.values()
    assert "expected finite" not in result.error
    assert result.error.startswith("round ")
    assert result.score == 0.0
    (row,) = build_rows(found)
    assert (row.domains, row.mean, row.errors) == ({}, None, (result.error,))
    assert result.error in to_csv(found)


def test_the_chosen_round_and_the_counts(config: Config, tmp_path: Path) -> None:
    plan = Plan(("linear-probe",), (IN_DOMAIN,), (0,), (0.1,))
    (result,) = compare(config, plan, tmp_path, "cpu", Reporter()).results.values()
    n_classes, joint = 3, 32
    assert result.parameters == n_classes * (joint + 1)
    assert result.bytes_sent == 2 * 2 * 4 * result.parameters  # two clients, both ways, float32
    assert [(number, sent) for number, sent, _ in result.curve] == [
        (1, result.bytes_sent),
        (2, 2 * result.bytes_sent),
    ]
    (chosen,) = (shares for number, _, shares in result.curve if number == result.best_round)
    assert result.accuracy == chosen
    assert 0 < result.share < 0.01


# tables


def make_comparison() -> Comparison:
    """Two seeds of one method, by hand."""
    plan = Plan(("promptfl",), (IN_DOMAIN, LEAVE_ONE_OUT), (0, 1), (0.1,))
    shares = {0: {"photo": 0.5, "sketch": 0.7}, 1: {"photo": 0.6, "sketch": 1.0}}
    results = {}
    for protocol in plan.protocols:
        for (cell,) in plan.trials(protocol, "promptfl", (0.1,), DOMAINS):
            accuracy = shares[cell.seed]
            if cell.fold:  # the other domain's share must not count
                accuracy = {d: s if d == cell.fold else 0.123 for d, s in accuracy.items()}
            results[cell] = CellResult(cell, accuracy, accuracy, bytes_sent=100, parameters=7)
    chosen = {(p, "promptfl"): [c for c in results if c.protocol == p] for p in plan.protocols}
    return Comparison(plan, DOMAINS, results, chosen)


def test_rows_have_mean_and_spread_over_the_seeds() -> None:
    rows = build_rows(make_comparison())
    assert [row.protocol for row in rows] == [IN_DOMAIN, LEAVE_ONE_OUT]
    for row in rows:
        assert row.mean is not None
        assert row.rates == (0.1,)
        assert row.domains["photo"].mean == pytest.approx(0.55)
        assert row.domains["photo"].std == pytest.approx(stdev([0.5, 0.6]))
        assert row.domains["sketch"].mean == pytest.approx(0.85)
        assert row.mean.mean == pytest.approx(fmean([0.6, 0.8]))
        assert row.mean.std == pytest.approx(stdev([0.6, 0.8]))
        assert (row.parameters, row.bytes_per_round, row.errors) == (7, 100, ())
    assert spread([0.3]).std == 0.0


def test_a_fold_that_diverged_takes_its_seed_out_of_the_mean() -> None:
    comparison = make_comparison()
    broken = next(c for c in comparison.results if (c.fold, c.seed) == ("photo", 0))
    comparison.results[broken] = CellResult(broken, error="round 1: found a loss of nan")
    row = build_rows(comparison)[1]
    assert row.mean is not None
    assert (row.mean.mean, row.mean.std) == (pytest.approx(0.8), 0.0)  # of seed 1 alone
    assert row.domains["sketch"].mean == pytest.approx(0.85)
    other = next(c for c in comparison.results if (c.fold, c.seed) == ("sketch", 1))
    comparison.results[other] = CellResult(other, error="round 1: found a loss of nan")
    assert build_rows(comparison)[1].mean is None


def test_csv_has_a_line_for_each_cell_and_domain() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(make_comparison()))))
    assert len(lines) == 2 * 2 + 4 * 2
    first = lines[0]
    assert (first["protocol"], first["method"], first["chosen"]) == (IN_DOMAIN, "promptfl", "1")
    assert (first["seed"], first["domain"], first["accuracy"]) == ("0", "photo", "0.500000")
    left_out = [line["left_out"] for line in lines if line["protocol"] == LEAVE_ONE_OUT]
    assert sorted(set(left_out)) == ["photo", "sketch"]


def test_json_holds_everything() -> None:
    comparison = make_comparison()
    found = to_json(comparison, build_rows(comparison), {"train.rounds": 2})
    found = json.loads(json.dumps(found))
    assert found["plan"]["methods"] == ["promptfl"]
    assert found["settings"] == {"train.rounds": 2}
    assert len(found["cells"]) == 6
    assert found["rows"][0]["mean"]["mean"] == pytest.approx(0.7)
    assert not any(math.isnan(row["mean"]["std"]) for row in found["rows"])
