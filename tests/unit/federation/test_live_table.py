"""The table of `fedapt federation train`."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from fedapt.cli.federation.train import draw
from fedapt.federation.flower.follow import Federation, follow

EVENTS = (
    {"time": 1.0, "event": "joined", "name": "north", "domain": "photo"},
    {"time": 2.0, "event": "joined", "name": "west", "domain": "sketch"},
    {"time": 3.0, "event": "replied", "name": "north", "images": 1766, "seconds": 4.25},
    {"time": 4.0, "event": "refused", "name": "west", "round": 1, "reason": "0 images"},
    {
        "time": 5.0,
        "event": "round",
        "rounds": 9,
        "record": {"round": 1, "loss": 0.5, "bytes_sent": 2_440_000, "accuracy": {"photo": 0.931}},
    },
)


def test_rounds_and_nodes() -> None:
    federation = Federation()
    for event in EVENTS:
        federation.add(event)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(draw(federation))
    text = capture.get()
    assert "round 1 of 9, loss 0.500, 2.44 MB a round" in text
    north, west = (line for line in text.splitlines() if "north" in line or "west" in line)
    assert [cell.strip() for cell in north.split("│")][4:8] == ["1,766", "4.2", "0", "93.1"]
    assert "0 images" in west
    assert federation.end == ""


def test_a_node_that_does_not_say_how_many_images() -> None:
    federation = Federation()
    for event in (EVENTS[0], EVENTS[2] | {"images": None}):
        federation.add(event)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(draw(federation))
    (north,) = (line for line in capture.get().splitlines() if "north" in line)
    assert [cell.strip() for cell in north.split("│")][4:6] == ["", "4.2"]


def test_lines_are_followed_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    before = json.dumps(EVENTS[0]) + "\n"
    path.write_text(before)
    lines = follow(path, len(before))
    assert next(lines) is None
    whole = json.dumps(EVENTS[1]) + "\n"
    with path.open("a") as stream:
        stream.write(whole + whole[:10])  # the second is still being written
    assert next(lines) == EVENTS[1]
    assert next(lines) is None
    with path.open("a") as stream:
        stream.write(whole[10:])
    assert next(lines) == EVENTS[1]
