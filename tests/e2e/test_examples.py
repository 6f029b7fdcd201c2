"""Every example runs as it stands, on tiny images."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from fedapt import api
from fedapt.core import names
from fedapt.core.config import Config
from fedapt.training import methods
from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"
EXPECTED = {
    "train_and_ship.py": "accuracy ",
    "own_method.py": "class-vectors: ",
    "swap_head.py": "later: mean score ",
}


@pytest.fixture
def workplace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_images: Path, tiny_clip: Path
) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["example", str(tiny_images)])
    monkeypatch.setenv("ROOT", str(tiny_images))
    read = api.read_run_settings

    def read_quickly(settings: Any, data: Any, named: Any, *more: Any) -> Config:
        return read(settings, data, {"model": str(tiny_clip), **named}, *more)

    monkeypatch.setattr(api, "read_run_settings", read_quickly)  # lite takes a minute here
    return tmp_path


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {
        *EXPECTED,
        "what_happens.ipynb",
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_runs(workplace: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    finally:
        names.METHODS.pop("class-vectors", None)
        methods.METHODS.pop("class-vectors", None)
    assert EXPECTED[name] in capsys.readouterr().out


def test_training_and_shipping_takes_at_most_fifteen_lines() -> None:
    source = (EXAMPLES / "train_and_ship.py").read_text("utf-8")
    code = source.split('"""', 2)[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_the_notebook_runs_and_holds_no_output(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="no matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    notebook = json.loads((EXAMPLES / "what_happens.ipynb").read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    space: dict[str, object] = {}
    for cell in cells:
        exec("".join(cell["source"]), space)
    assert len(pyplot.get_fignums()) == 3
    pyplot.close("all")
    assert "{" in capsys.readouterr().out
