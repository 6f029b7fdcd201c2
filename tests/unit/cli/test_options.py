"""Errors of the library name settings and parameters; the command line names its options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedapt
import fedapt_export
import fedapt_runtime
from fedapt.cli.options import name_options

OPTIONS = {"--out", "--lr", "--model", "--pretrained", "--resume", "--precision", "--tracker", "-o"}


@pytest.mark.parametrize(
    ("where", "rest", "expected"),
    [
        ("train.lr", "found 0", "--lr: found 0"),
        ("lrs", "found x", "--lr: found x"),
        ("trackers", "found x", "--tracker: found x"),
        ("model ViT-B-32", "found x", "--model ViT-B-32: found x"),
        ("out and precision", "found both", "--out and --precision: found both"),
        ("out and mixing", "found both", "--out and mixing: found both"),
        ("train.rounds", "found 0", "train.rounds: found 0"),
        ("model.json", "found x", "model.json: found x"),
        ("/out", "found x", "/out: found x"),
        ("run", "continue with `resume` into `out`", "run: continue with --resume into --out"),
        ("run", "see `fedapt methods` or `data`", "run: see `fedapt methods` or `data`"),
        ("run", "allow `data.shots = 7`", "run: allow -o data.shots=7"),
    ],
)
def test_the_command_names_the_options_that_it_has(where: str, rest: str, expected: str) -> None:
    assert name_options(f"{where}: {rest}", where, OPTIONS) == expected


def texts_of_errors(source: ast.AST) -> Iterator[str]:
    for call in ast.walk(source):
        if isinstance(call, ast.Call):
            for keyword in call.keywords:
                if keyword.arg in ("where", "found", "expected", "next_step"):
                    yield ast.unparse(keyword.value)


def test_no_error_of_the_library_names_an_option() -> None:
    paths = [
        path
        for package in (fedapt, fedapt_export, fedapt_runtime)
        for path in Path(str(package.__file__)).parent.rglob("*.py")
        if "cli" not in path.parts and path.name not in ("cli.py", "command.py")
    ]
    assert len(paths) > 100
    found = [
        (path.name, text)
        for path in paths
        for text in texts_of_errors(ast.parse(path.read_text()))
        if re.search(r"--[a-z]", re.sub(r"`?fedapt export[^`]*", "", text))
    ]
    assert found == []
