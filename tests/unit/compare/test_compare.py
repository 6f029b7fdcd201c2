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

from fedapt.compare import run as compare_run
from fedapt.compare.plan import DIRICHLET, FEW_SHOT, IN_DOMAIN, LEAVE_ONE_OUT, Cell, Plan
from fedapt.compare.run import CellResult, Comparison, compare
from fedapt.compare.table import build_rows, spread, to_csv, to_json
from fedapt.core.config import Config, DataConfig, FederationConfig, read_config
from fedapt.core.errors import UsageError
from fedapt.core.report import Reporter

DOMAINS = ("photo", "sketch")


@pytest.fixture
def config(tiny_clip: Path, tiny_images: Path) -> Config:
    return read_config(
        None,
        [],
        {
            "data.root": str(tiny_images),
            "data.validation_fraction": 0.25,
            "model.name": str(tiny_clip),
            "train.rounds": 2,
            "train.batch_size": 8,
            "train.evaluate_every": 1,
            "prompt.context_length": 4,
        },
    )


def cells_of(folder: Path) -> dict[str, int]:
    """Result files and when they were written."""
    found = (folder / "cells").rglob("*.json")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}


# the plan


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ({"methods": ("fedapt", "fedap")}, r"--methods: found 'fedap'; expected different ones of"),
        ({"methods": ()}, r"--methods: found 'nothing'|--methods: found nothing"),
        ({"methods": ("fedapt", "fedapt")}, r"--methods: found fedapt, fedapt"),
        ({"protocols": ("indomain",)}, r"--protocols: found 'indomain'; expected different ones"),
    ],
)
def test_unknown_names_are_refused(names: dict[str, tuple[str, ...]], text: str) -> None:
    plan = {"methods": ("fedapt",), "protocols": (IN_DOMAIN,)} | names
    with pytest.raises(UsageError, match=text):
        Plan(**plan, seeds=(0,), rates=(0.1,))


def test_leave_one_out_has_a_fold_for_each_domain() -> None:
    plan = Plan(("promptfl",), (LEAVE_ONE_OUT,), (0, 1), (0.1,))
    cells = plan.cells(LEAVE_ONE_OUT, "promptfl", 0.1, DOMAINS)
    assert [(c.fold, c.seed) for c in cells] == [
        ("photo", 0),
        ("photo", 1),
        ("sketch", 0),
        ("sketch", 1),
    ]
    assert str(cells[3].path) == "cells/leave-one-out/sketch/promptfl/seed-1-lr-0.1.json"
    assert len(plan.cells(IN_DOMAIN, "promptfl", 0.1, DOMAINS)) == 2


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


# running


def test_cells_are_run_once_and_added_to(config: Config, tmp_path: Path) -> None:
    plan = Plan(("zero-shot", "linear-probe"), (IN_DOMAIN,), (0,), (0.1,))
    first = compare(config, plan, tmp_path, "cpu", Reporter())
    written = cells_of(tmp_path)
    assert sorted(written) == [
        "cells/in-domain/linear-probe/seed-0-lr-0.1.json",
        "cells/in-domain/zero-shot/seed-0-lr-0.1.json",
    ]
    again = compare(config, plan, tmp_path, "cpu", Reporter())
    assert cells_of(tmp_path) == written
    assert again.results == first.results
    more = Plan(("linear-probe", "promptfl"), (IN_DOMAIN, LEAVE_ONE_OUT), (0, 1), (0.1,))
    third = compare(config, more, tmp_path, "cpu", Reporter())
    assert len(third.results) == 2 * (2 + 2 * 2)
    assert written.items() <= cells_of(tmp_path).items()
    cell = Cell(IN_DOMAIN, "", "linear-probe", 0, 0.1)
    assert third.results[cell] == first.results[cell]


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


def test_the_rate_is_the_best_on_validation_whatever_test_images_say(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {0.1: (0.5, 0.6), 0.2: (0.7, 0.5), 0.3: (0.55, 0.55)}  # rate -> validation by seed

    def pretend(bench: object, cell: Cell) -> CellResult:
        test = 1.0 - scores[cell.lr][cell.seed]
        return CellResult(cell, dict.fromkeys(DOMAINS, test), validation=scores[cell.lr][cell.seed])

    monkeypatch.setattr(compare_run._Bench, "_train", pretend)
    plan = Plan(("promptfl",), (LEAVE_ONE_OUT,), (0, 1), tuple(scores))
    found = compare(config, plan, tmp_path, "cpu", Reporter())
    assert found.rates == {"promptfl": 0.2}
    folds = [cell for cell in found.results if cell.protocol == LEAVE_ONE_OUT]
    assert {cell.lr for cell in folds} == {0.2}
    assert len(folds) == 4
    assert len(found.results) == 4 + 6  # every rate was tried in-domain


def test_a_method_without_training_has_one_rate(config: Config, tmp_path: Path) -> None:
    plan = Plan(("zero-shot",), (IN_DOMAIN,), (0,), (0.1, 0.2))
    found = compare(config, plan, tmp_path, "cpu", Reporter())
    (result,) = found.results.values()
    assert result.accuracy == result.zero_shot
    assert (result.parameters, result.bytes_sent, result.curve) == (0, 0, [])


def test_a_cell_that_diverges_is_a_result(config: Config, tmp_path: Path) -> None:
    plan = Plan(("linear-probe",), (IN_DOMAIN,), (0,), (1e3,))
    train = dataclasses.replace(config.train, proximal=1e6, local_epochs=5)
    found = compare(dataclasses.replace(config, train=train), plan, tmp_path, "cpu", Reporter())
    (result,) = found.results.values()
    assert "expected finite" not in result.error
    assert result.error.startswith("round ")
    assert result.score == 0.0
    (row,) = build_rows(found)
    assert (row.domains, row.errors) == ({}, (result.error,))
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
        for cell in plan.cells(protocol, "promptfl", 0.1, DOMAINS):
            accuracy = shares[cell.seed]
            if cell.fold:  # the other domain's share must not count
                accuracy = {d: s if d == cell.fold else 0.123 for d, s in accuracy.items()}
            results[cell] = CellResult(cell, accuracy, accuracy, bytes_sent=100, parameters=7)
    return Comparison(plan, DOMAINS, results, {"promptfl": 0.1})


def test_rows_have_mean_and_spread_over_the_seeds() -> None:
    rows = build_rows(make_comparison())
    assert [row.protocol for row in rows] == [IN_DOMAIN, LEAVE_ONE_OUT]
    for row in rows:
        assert row.domains["photo"].mean == pytest.approx(0.55)
        assert row.domains["photo"].std == pytest.approx(stdev([0.5, 0.6]))
        assert row.domains["sketch"].mean == pytest.approx(0.85)
        assert row.mean.mean == pytest.approx(fmean([0.6, 0.8]))
        assert row.mean.std == pytest.approx(stdev([0.6, 0.8]))
        assert (row.parameters, row.bytes_per_round, row.errors) == (7, 100, ())
    assert spread([0.3]).std == 0.0


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
