"""Pages name files that exist, and commands and options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from fedapt.cli.app import app
from tests.support.paths import ROOT

PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "runtime/README.md")),
]
SOURCE = re.compile(r"\b(?:fedapt\w*|tests|benchmarks|configs|runtime|export)/[\w./-]+\.\w+")
FOLDERS = ("", "runtime", "export")


def find_absent_files(text: str) -> list[str]:
    named = set(SOURCE.findall(text))
    return sorted(n for n in named if not any((ROOT / f / n).exists() for f in FOLDERS))


def code_lines(text: str) -> list[str]:
    """The lines of code blocks, fenced or indented; a line that ends in a backslash goes on."""
    text = re.sub(r" \\\n *", " ", text)
    fenced = "\n".join(re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)).splitlines()
    indented = [line for line in text.splitlines() if line.startswith("    ")]
    return [line.strip().removeprefix("$ ") for line in [*fenced, *indented]]


def find_unknown_options(text: str) -> list[str]:
    """Commands of `fedapt` in a text that do not exist, and options that they do not have."""
    found = []
    for line in code_lines(text):
        if not line.startswith("fedapt "):
            continue
        command = typer.main.get_command(app)
        words = shlex.split(line.split("   ")[0].split(" # ")[0])[1:]
        while words and (below := getattr(command, "commands", {}).get(words[0])):
            command, words = below, words[1:]
        if hasattr(command, "commands"):
            found.append(line)
            continue
        known = {option for parameter in command.params for option in parameter.opts}
        found += [w for w in words if w.startswith("-") and w.partition("=")[0] not in known]
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_options_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    assert find_absent_files(text) == []
    assert find_unknown_options(text) == []


def test_what_is_absent_is_found() -> None:
    assert find_absent_files("see fedapt/train/loop.py") == ["fedapt/train/loop.py"]
    assert find_unknown_options("    $ fedapt export c --out m --best") == ["--best"]
    assert find_unknown_options("```\nfedapt deploy m\n```") == ["fedapt deploy m"]
    assert find_unknown_options("    fedapt train --data R \\\n    --out O --rounds 3  # c") == []
