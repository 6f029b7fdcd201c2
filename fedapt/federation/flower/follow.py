"""Summary of a federation's live file: rounds, and the state of each node."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedapt.core.records import Record

_POLL_S = 0.3


@dataclass
class NodeState:
    """A node, as the server sees it.

    Attributes:
        seen: time of its last sign of life.
        images: number in its last reply, after `seconds`; None if the reply has no number.
        refused: number of its replies that were refused or missing.
        accuracy: last measured accuracy of its domain.
    """

    domain: str = ""
    seen: float = 0.0
    images: int | None = 0
    seconds: float = 0.0
    refused: int = 0
    reason: str = ""


@dataclass
class Federation:
    """The state of a federation after the events so far.

    Attributes:
        end: `finished`, `failed`, or empty during training.
    """

    nodes: dict[str, NodeState] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    rounds: int = 0
    accuracy: dict[str, float] = field(default_factory=dict)
    end: str = ""
    reason: str = ""

    def add(self, line: dict[str, Any]) -> None:
        """Update the state with one event."""
        event = line["event"]
        if event in ("joined", "replied", "refused"):
            node = self.nodes.setdefault(line["name"], NodeState())
        if event == "joined":
            node.domain, node.seen = line["domain"], line["time"]
        elif event == "replied":
            node.seen, node.images, node.seconds = line["time"], line["images"], line["seconds"]
        elif event == "refused":
            node.refused, node.reason = node.refused + 1, line["reason"]
        elif event == "round":
            self.rounds = line["rounds"]
            self.records.append(line["record"])
            self.accuracy |= line["record"].get("accuracy", {})
        elif event in ("finished", "failed"):
            self.end, self.reason = event, line.get("reason", "")


def follow(path: Path, offset: int) -> Iterator[dict[str, Any] | None]:
    """Yield events as they are written, and None if there is no new one.

    Args:
        offset: size of the file before these events, in bytes.
    """
    while True:
        if path.is_file() and path.stat().st_size > offset:
            with path.open("rb") as stream:
                stream.seek(offset)
                for line in stream:
                    if not line.endswith(b"\n"):
                        break  # an incomplete line
                    offset += len(line)
                    yield json.loads(line)
        yield None
        time.sleep(_POLL_S)
