"""docs/settings.md and the JSON schema: what the declarations of the settings say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedapt.core.config import Config, flatten
from fedapt.core.declarations import declarations, say_number
from fedapt.core.settings_page import PAGE, SCHEMA, say_default, to_markdown, to_schema, write_pages

DOCS = Path(__file__).parents[3] / "docs"


def test_the_pages_in_docs_are_up_to_date(tmp_path: Path) -> None:
    write_pages(tmp_path)
    for name in (PAGE, SCHEMA):
        written = (tmp_path / name).read_text("utf-8")
        assert (DOCS / name).read_text("utf-8") == written, "run `make settings`"


def test_every_setting_has_a_row_with_its_default_values_and_meaning() -> None:
    rows = to_markdown().splitlines()
    assert "| `lr` | `0.3` | a number from 1e-9 to 1 000 | learning rate of SGD |" in rows
    assert "| `secure_threshold` | `2/3` | a number from 0.5 to 1 |" in to_markdown()
    known = declarations(Config)
    assert list(known) == list(flatten(Config()))
    for name, setting in known.items():
        assert any(row.startswith(f"| `{name.partition('.')[2]}` |") for row in rows)
        assert setting.meaning
        assert setting.default == flatten(Config())[name]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (50, "50"),
        (1_000_000, "1 000 000"),
        (1000.0, "1 000"),
        (0.9999, "0.9999"),
        (1e-6, "1e-6"),
        (1e12, "1e12"),
        (2**63 - 1, "9 223 372 036 854 775 807"),
    ],
)
def test_numbers_are_written_for_people(number: float, text: str) -> None:
    assert say_number(number) == text


def test_a_default_is_written_as_toml() -> None:
    assert [say_default(v) for v in ("a", True, 1e-5, 0.2, {})] == [
        '"a"',
        "true",
        "1e-5",
        "0.2",
        "{}",
    ]


def test_the_schema_accepts_and_refuses_what_the_code_does() -> None:
    schema = to_schema()
    rounds = schema["$defs"]["TrainConfig"]["properties"]["rounds"]
    assert (rounds["minimum"], rounds["maximum"], rounds["default"]) == (1, 1_000_000, 50)
    assert rounds["type"] == "integer"
    assert "fedapt" in schema["$defs"]["TrainConfig"]["properties"]["method"]["enum"]
    assert schema["$defs"]["TrainConfig"]["additionalProperties"] is False
    json.dumps(schema)
