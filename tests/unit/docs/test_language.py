"""Documents and help use the words of docs/glossary.md, and sentences that name their subject."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from fedapt.cli.app import app
from tests.support.paths import ROOT
from tests.unit.cli.test_help import walk_options

PAGES = sorted((ROOT / "docs").glob("*.md")) + [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "runtime/README.md")
]
# the field has a word for each of these: docs/glossary.md
WORDS = re.compile(
    r"\b(doors?|porch|rosters?|borders?|lanes?|blur|stock|settles?|take_apart|believed|usual_batch"
    r"|mends?|mended|(?-i:of fedapt's)|at hand|whoever|(?:goes|go) on|learnt)\b",
    re.IGNORECASE,
)
# where a sentence begins: after a full stop, a list's mark, a cell's edge or an empty line
START = r"(?:^|(?<=\. )|(?<=\n\n)|(?<=\n- )|(?<=\n\| ))"
BEGINNINGS = re.compile(START + r"(As of|Of|That which|What) \w+")


PACKAGES = ("fedapt", "export/fedapt_export", "runtime/fedapt_runtime")
DOCSTRING_BEGINNINGS = re.compile(r"(As of|Of|That|What) ")


def prose(path: Path) -> str:
    """A page without its code."""
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    text = re.sub(r"\n    .*", "", text)
    return re.sub(r"`[^`\n]*`", "`", text)


def find_faults(text: str) -> list[str]:
    found: Iterator[re.Match[str]] = (m for p in (WORDS, BEGINNINGS) for m in p.finditer(text))
    return [match[0] for match in found]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_uses_plain_words_and_beginnings(path: Path) -> None:
    assert find_faults(prose(path)) == []


def test_help_texts_use_plain_words_and_beginnings() -> None:
    options = dict(walk_options(typer.main.get_command(app)))
    faults = {name: find_faults(text) for name, text in options.items()}
    assert {name: found for name, found in faults.items() if found} == {}


def find_docstrings(source: str) -> Iterator[str]:
    """Docstrings of the module, its classes and its functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


@pytest.mark.parametrize("package", PACKAGES)
def test_a_docstring_begins_with_its_subject(package: str) -> None:
    faults = [
        f"{path.relative_to(ROOT)}: {text.splitlines()[0]}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for text in find_docstrings(path.read_text("utf-8"))
        if DOCSTRING_BEGINNINGS.match(text)
    ]
    assert faults == []


def test_all_docstrings_are_read() -> None:
    source = '"""A."""\nclass B:\n  """Of b."""\n  async def c(self):\n    """\n    What c."""\n'
    assert list(find_docstrings(source)) == ["A.", "Of b.", "What c."]
    faults = [bool(DOCSTRING_BEGINNINGS.match(text)) for text in find_docstrings(source)]
    assert faults == [False, True, True]


@pytest.mark.parametrize(
    "text",
    [
        "Of a client, its images count.",
        "It is fast. What counts is speed.",
        "a file\n\nAs of this version, no.",
        "The roster lists nodes.",
        "An export is not believed.",
        "No GPU was at hand.",
        "The round goes on without it.",
    ],
)
def test_a_fault_is_found(text: str) -> None:
    assert find_faults(text)


def test_plain_sentences_have_no_fault() -> None:
    assert find_faults("The registry lists nodes. At most 3 of them train. What's more.") == []
