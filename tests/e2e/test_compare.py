"""`fedapt compare`: the table, the files and the page, and wrong input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fedapt.cli.app import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def command(tiny_clip: Path, tiny_images: Path, tmp_path: Path) -> list[object]:
    return [
        "compare",
        *("--data", tiny_images),
        *("--model", tiny_clip),
        *("--out", tmp_path / "out"),
        *("--seeds", 2),
        *("--rounds", 2),
        *("-o", "prompt.context_length=4"),
        *("-o", "train.batch_size=8"),
    ]


def test_the_whole_command(
    command: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = "zero-shot,fedapt,local"
    arguments = [*command, "--methods", methods, "--protocols", "in-domain,leave-one-out"]
    code, out, err = run(capsys, *arguments, "--lr", "0.1")
    assert code == 0
    assert "cells: 18" in err  # three methods, two seeds, in-domain and two folds
    for text in ("in-domain: test accuracy", "leave-one-out", "zero-shot", "FedAPT", "local only"):
        assert text in out
    assert re.search(r"\d+\.\d ± \d+\.\d", out)
    folder = tmp_path / "out"
    results = json.loads((folder / "results.json").read_text("utf-8"))
    assert [row["method"] for row in results["rows"]] == 2 * methods.split(",")
    assert str(tmp_path) not in (folder / "results.json").read_text("utf-8")
    assert len((folder / "results.csv").read_text("utf-8").splitlines()) == 1 + 18 * 2
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("<svg") == 2 * 3 + 1  # bars, rounds, bytes for each; one routing
    assert "data.validation_fraction = 0.2\n" in page
    assert "What methods change" not in page  # these three take the settings as they are
    assert not re.search(r'(src|href)="(http|//)', page)  # nothing is loaded from elsewhere
    code, out, err = run(capsys, *arguments, "--lr", "0.1", "--json")
    assert (code, [row["method"] for row in json.loads(out)]) == (0, 2 * methods.split(","))


def test_settings_decide_where_options_do_not(
    command: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On one rate, and on the share of validation images."""
    settings = ["-o", "train.lr=0.07", "-o", "data.validation_fraction=0.4", "--seeds", "1"]
    code, out, _ = run(capsys, *command, "--methods", "cocoop", *settings, "--json")
    assert code == 0
    assert json.loads(out)[0]["rates"] == [0.07]
    shared = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))["settings"]
    assert shared["data.validation_fraction"] == 0.4
    assert not {"train.lr", "train.seed", "train.method", "data.split_seed"} & shared.keys()
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "CoCoOp: prompt.class_specific = False, not True; " in page


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--methods", "fedapt,foo"], 2, "--methods: found 'foo'"),
        (["--protocols", "foo"], 2, "--protocols: found 'foo'"),
        (
            ["--lr", "0.1,x"],
            2,
            "--lr: found '0.1,x'; expected numbers above 0, separated by commas",
        ),
        (["--lr", "0"], 2, "--lr: found '0'"),
        (["--lr", "0.1,0.2", "--validation", "0"], 2, "2 learning rates and no validation images"),
        (["-o", "federation.alpha=-1"], 3, "federation.alpha = -1"),
        (
            ["--protocols", "few-shot", "-o", "data.shots=7"],
            4,
            "data.shots = 7: found 6 training images",
        ),
        (["-o", "data.shots=2"], 2, "data.shots = 2: found protocols in-domain; expected few-shot"),
        (["-o", "train.seed=1"], 2, "train.seed = 1: found a setting that differs from cell"),
        (["--lr", "0.1", "-o", "federation.sampled=3"], 3, "federation.sampled = 3: found 2"),
    ],
)
def test_wrong_input(
    command: list[object],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    text: str,
) -> None:
    found, out, err = run(capsys, *command, "--methods", "linear-probe", *options)
    assert (found, out) == (code, "")
    assert text in err
    assert "Traceback" not in err
