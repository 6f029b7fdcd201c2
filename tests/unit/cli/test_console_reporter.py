"""Long work without a terminal: a line for each round or cell, no colours."""

from __future__ import annotations

import sys

import pytest

from fedapt.cli.show import console_reporter, print_json, print_table


def test_a_line_for_each_round(capsys: pytest.CaptureFixture[str]) -> None:
    with console_reporter() as reporter:
        for done in (1, 2):
            reporter.progress("rounds", done, 2, f"loss 0.{done}")
            reporter.progress("cells", done, 2)
            reporter.progress("image features", done, 2)
        reporter.message("a\x1b[31mb\nc")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "rounds: 1 of 2, loss 0.1",
        "cells: 1 of 2",
        "rounds: 2 of 2, loss 0.2",
        "cells: 2 of 2",
        "image features: 2",
        r"a\x1b[31mb",
        "c",
    ]


def test_a_wide_table_continues_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    domains = ["amazon", "caltech", "dslr", "webcam", "mean", "MB a round"]
    print_table("in-domain", ["method", *domains], [["adaptive analytic", *["97.8 ± 0.5"] * 6]])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert [line for line in lines if "adaptive analytic" in line] == [
        "│ adaptive analytic │ 97.8 ± 0.5 │ 97.8 ± 0.5 │ 97.8 ± 0.5 │ 97.8 ± 0.5 │",
        "│ adaptive analytic │ 97.8 ± 0.5 │ 97.8 ± 0.5 │",
    ]
    (first, second) = (line for line in lines if "method" in line)
    assert "webcam" in first
    assert "MB a round" in second


def test_a_table_that_fits_is_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    print_table("of two", ["method", "mean"], [["fedapt", "97.6"]])
    assert capsys.readouterr().out.count("method") == 1


def test_tables_and_json_show_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("of \x1b[2J", ["domain"], [["a\x9b1m[red]"]])
    print_json({"class": "\x7f"})
    out = capsys.readouterr().out
    assert r"of \x1b[2J" in out
    assert r"a\x9b1m[red]" in out
    assert '"\\u007f"' in out
    assert not {"\x1b", "\x9b", "\x7f"} & set(out)
