"""Pages name files that exist, and commands and options that exist."""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path

import pytest
import typer

from fedapt.cli.app import app
from fedapt_runtime.cli.app import build_parser
from tests.support.paths import ROOT

PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "runtime/README.md")),
]
SOURCE = re.compile(r"\b(?:fedapt\w*|tests|benchmarks|configs|runtime|export)/[\w./-]+\.\w+")
FOLDERS = ("", "runtime", "export")
VARIABLE = re.compile(r"\bFEDAPT_[A-Z_]*[A-Z]\b")


def find_absent_files(text: str) -> list[str]:
    named = set(SOURCE.findall(text))
    return sorted(n for n in named if not any((ROOT / f / n).exists() for f in FOLDERS))


@cache
def known_variables() -> frozenset[str]:
    """Environment variables that code and tests name."""
    folders = ("fedapt", "export", "runtime", "benchmarks", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    files = [path for path in files if not path.is_relative_to(ROOT / "tests/unit/docs")]
    return frozenset(name for path in files for name in VARIABLE.findall(path.read_text("utf-8")))


def find_unknown_variables(text: str) -> list[str]:
    return sorted(set(VARIABLE.findall(text)) - known_variables())


def code_lines(text: str) -> list[str]:
    """Lines of code blocks, joined at a backslash, and code within lines that has a space."""
    text = re.sub(r" \\\n *", " ", text)
    fenced = "\n".join(re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)).splitlines()
    indented = [line for line in text.splitlines() if line.startswith("    ")]
    inline = re.findall(r"`([^`\n]+ [^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line.strip().removeprefix("$ ") for line in [*fenced, *indented, *inline]]


@cache
def runtime_options(command: str) -> frozenset[str]:
    """Options of a command of `fedapt-runtime`, from its help; none for an unknown command."""
    text, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(text), redirect_stderr(errors), suppress(SystemExit):
        build_parser().parse_args([command, "--help"])
    return frozenset(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text.getvalue()))


def find_unknown_options(text: str) -> list[str]:
    """Commands of `fedapt` and `fedapt-runtime` in a text that do not exist, and such options."""
    found = []
    for line in code_lines(text):
        if not re.match(r"fedapt(-runtime)? [a-z]", line):
            continue
        program, *words = shlex.split(line.split("   ")[0].split(" # ")[0])
        if program == "fedapt-runtime":
            known = set(runtime_options(words[0]))
            unknown = not known
        else:
            command = typer.main.get_command(app)
            while words and (below := getattr(command, "commands", {}).get(words[0])):
                command, words = below, words[1:]
            unknown = hasattr(command, "commands") and words not in ([], ["..."])
            known = {option for parameter in command.params for option in parameter.opts}
        if unknown:
            found.append(line)
        else:
            found += [w for w in words if w.startswith("-") and w.partition("=")[0] not in known]
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_options_and_variables_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    assert find_absent_files(text) == []
    assert find_unknown_options(text) == []
    assert find_unknown_variables(text) == []


def test_what_is_absent_is_found() -> None:
    assert find_absent_files("see fedapt/train/loop.py") == ["fedapt/train/loop.py"]
    assert find_unknown_variables("`FEDAPT_IMAGE`, `FEDAPT_CACHE`") == ["FEDAPT_IMAGE"]
    assert find_unknown_options("    $ fedapt export c --out m --best") == ["--best"]
    assert find_unknown_options("```\nfedapt deploy m\n```") == ["fedapt deploy m"]
    assert find_unknown_options("Run `fedapt-runtime classify m p --threads 2`.") == ["--threads"]
    assert find_unknown_options("`fedapt-runtime guess m`") == ["fedapt-runtime guess m"]
    assert find_unknown_options("`fedapt-runtime serve m --web site`") == []
    assert find_unknown_options("    fedapt train --data R \\\n    --out O --rounds 3  # c") == []
