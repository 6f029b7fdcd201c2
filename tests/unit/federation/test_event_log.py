"""A line for each event, for people or for programs."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedapt.federation.flower.event_log import EventLog, keep_library_logs
from fedapt.federation.flower.watch import Watch

RECORD = {"round": 3, "loss": 0.25, "seconds": 1.25, "bytes_sent": 500_000, "replies": 4}


def lines(kind: str) -> list[str]:
    stream = io.StringIO()
    watch = Watch(EventLog(kind, stream))
    watch.replied("berlin", 126, 1.25)
    watch.refused("bern", 3, "a\x1b[31m reason\nwith a line")
    watch.finished_round(RECORD, 10)
    return stream.getvalue().splitlines()


def test_text() -> None:
    found = lines("text")
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in found)
    assert [line.partition(" ")[2] for line in found] == [
        "info berlin: 126 images, 1.2 s",
        r"warning round 3: bern: a\x1b[31m reason\x0awith a line",
        "info round 3 of 10: 4 replies, loss 0.250, 0.50 MB, 1.2 s",
    ]


def test_json() -> None:
    first, second, third = map(json.loads, lines("json"))
    assert (first["level"], first["node"], first["images"], first["seconds"]) == (
        "info",
        "berlin",
        126,
        1.25,
    )
    assert (second["level"], second["round"], second["node"]) == ("warning", 3, "bern")
    assert (third["round"], third["bytes"], third["seconds"]) == (3, 500_000, 1.25)


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    root, flower = logging.getLogger(), logging.getLogger("flwr")
    raising = logging.raiseExceptions
    before = (root.handlers[:], root.level, flower.handlers[:], flower.propagate)
    yield
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    logging.raiseExceptions = raising
    root.handlers[:], root.level, flower.handlers[:], flower.propagate = before


def test_what_libraries_log_goes_to_a_file(
    tmp_path: Path, logging_as_before: None, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_library_logs(tmp_path / "state")
    logging.getLogger("flwr").warning("of Flower")
    logging.getLogger("asyncio").error("of asyncio")
    assert capsys.readouterr() == ("", "")
    text = (tmp_path / "state" / "libraries.log").read_text()
    assert "WARNING flwr of Flower" in text
    assert "ERROR asyncio of asyncio" in text
