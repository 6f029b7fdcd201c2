"""records.jsonl: one JSON object a line, whole at any moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedapt.core.errors import FileError
from fedapt.core.records import Record, read_records, write_records

RECORDS: list[Record] = [
    {"round": 1, "loss": 0.1 + 0.2, "accuracy": {"büro": 1.0, "a\nb": 0.5}},
    {"round": 2, "loss": 1e-30, "accuracy": {}},
]


def test_records_survive_the_trip(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, RECORDS)
    assert read_records(path) == RECORDS


def test_one_line_is_one_object(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, RECORDS)
    text = path.read_text("utf-8")
    assert [json.loads(line)["round"] for line in text.removesuffix("\n").split("\n")] == [1, 2]
    assert text.endswith("}\n")
    assert "büro" in text  # for people to read


def test_writing_again_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, RECORDS)
    write_records(path, RECORDS[:1])
    assert read_records(path) == RECORDS[:1]


def test_no_file_and_an_empty_file_hold_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "absent.jsonl") == []
    write_records(tmp_path / "empty.jsonl", [])
    assert (tmp_path / "empty.jsonl").read_bytes() == b""
    assert read_records(tmp_path / "empty.jsonl") == []


@pytest.mark.parametrize("name", ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb", "a\rb"])
def test_a_name_with_a_line_separator_stays_on_its_line(tmp_path: Path, name: str) -> None:
    write_records(tmp_path / "records.jsonl", [{"accuracy": {name: 0.5}}])
    assert read_records(tmp_path / "records.jsonl") == [{"accuracy": {name: 0.5}}]


@pytest.mark.parametrize("line", ['{"round": 2', "[2]", "2", "", "null", "nonsense"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f'{{"round": 1}}\n{line}\n{{"round": 3}}\n')
    with pytest.raises(FileError, match="expected a JSON object") as caught:
        read_records(path)
    assert caught.value.where == f"{path}, line 2"
    assert caught.value.found == repr(line)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"round": 1}\n{"\xff": 2}\n')
    with pytest.raises(FileError, match=r"records\.jsonl, line 2: found .*expected a JSON object"):
        read_records(path)


def test_a_long_damaged_line_is_shown_in_part(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text("x" * 10_000)
    with pytest.raises(FileError) as caught:
        read_records(path)
    assert caught.value.found == repr("x" * 60)
