"""docs/settings.md against the configuration: every key, its default and what it may be."""

from __future__ import annotations

import re
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from fedapt.core.config import _CHOICES, _RANGES, Config, flatten

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"
OF_TYPE = {str: "text", bool: "true or false", dict: "table"}


def read_page(text: str) -> dict[str, tuple[Any, Any]]:
    """`section.key` -> default and values of each row."""
    rows: dict[str, tuple[Any, Any]] = {}
    section = ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"## `\[(\w+)\]`", line):
            section = heading[1]
        elif row := re.fullmatch(r"\| `(\w+)` \| `(.+?)` \| (.+?) \| (.+) \|", line):
            name, default, values, meaning = row.groups()
            assert meaning.strip()
            assert f"{section}.{name}" not in rows
            rows[f"{section}.{name}"] = (read_default(default), read_values(values))
    return rows


def read_default(text: str) -> Any:
    if re.fullmatch(r"\d+/\d+", text):
        return float(Fraction(text))
    return tomllib.loads(f"value = {text}")["value"]


def read_values(text: str) -> Any:
    """A range as two numbers, choices as their names, else the text itself."""
    if names := re.findall(r"`([^`]+)`", text):
        return tuple(names)
    if ends := re.fullmatch(r"([\d.e -]+) to ([\d.e -]+)", text):
        digits = (end.replace(" ", "") for end in ends.groups())
        return tuple(int(end) if end.isdigit() else float(end) for end in digits)
    return text


def read_config() -> dict[str, tuple[Any, Any]]:
    """The same of the code."""
    known = {}
    for name, default in flatten(Config()).items():
        values: Any = _CHOICES.get(name) or _RANGES.get(name) or OF_TYPE[type(default)]
        known[name] = (default, values)
    return known


def test_the_page_is_the_configuration() -> None:
    page, known = read_page(PAGE.read_text("utf-8")), read_config()
    assert list(page) == list(known)
    for name, (default, values) in known.items():
        assert page[name] == (default, values), name
        assert type(page[name][0]) is type(default), name


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("| `lr` | `0.01` |", "| `lr` | `0.1` |"),
        ("| `lr` | `0.01` |", "| `rate` | `0.01` |"),
        ("| `rounds` | `50` | 1 to 1 000 000 |", "| `rounds` | `50` | 0 to 1 000 000 |"),
        ("`constant`, `cosine`", "`constant`, `linear`"),
    ],
)
def test_a_page_that_is_stale_is_seen(before: str, after: str) -> None:
    text = PAGE.read_text("utf-8")
    assert text.count(before) == 1
    assert read_page(text.replace(before, after)) != read_config()
