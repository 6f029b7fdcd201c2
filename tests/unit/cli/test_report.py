"""`fedapt report`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedapt.cli.app import main


def test_the_command_writes_both_files_and_prints_the_figures(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page" / "tiny.html"
    arguments = ["report", str(tiny_run), "--out", str(out), "--license", "mit", "--json"]
    assert main([*arguments, "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out)
    assert set(figures["accuracy"]) == {"photo", "sketch"}
    assert set(figures["alternatives"]) == {"zero-shot"}
    assert "written: " in printed.err
    assert "<h1>FedAPT: tiny</h1>" in out.read_text("utf-8")
    assert '\nlicense: "mit"\n' in (out.parent / "model_card.md").read_text("utf-8")


def test_an_out_that_is_no_page_is_a_wrong_option(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tiny_run), "--out", str(tmp_path / "page.txt")]) == 2
    assert capsys.readouterr().err.startswith("error: --out: found ")
    assert list(tmp_path.iterdir()) == []
