"""The events of a federation as JSON lines, for a terminal or a dashboard."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedapt.core.report import Reporter
from fedapt_runtime.printable import printable_json


class Watch:
    """Writes one line for each event, immediately.

    Args:
        reporter: receives the events that need the operator's attention.
        path: the file of the lines; None for no file.
    """

    def __init__(self, reporter: Reporter, path: Path | None = None) -> None:
        self._reporter, self._path = reporter, path

    def joined(self, name: str, domain: str) -> None:
        """A node has joined."""
        self._reporter.event("info", f"{name}: joined with domain {domain}", node=name)
        self._write("joined", name=name, domain=domain)

    def waiting(
        self, ready: int, least: int, unseen: Sequence[str], preparing: Sequence[str]
    ) -> None:
        """Too few nodes are ready; `unseen` are not connected, `preparing` load images and CLIP."""
        text = f"waiting for nodes: {ready} of {least} ready"
        text += f"; not connected yet: {', '.join(unseen)}" if unseen else ""
        text += f"; getting ready: {', '.join(preparing)}" if preparing else ""
        self._reporter.event("warning", text, ready=ready, least=least)
        names = {"unseen": list(unseen), "preparing": list(preparing)}
        self._write("waiting", ready=ready, least=least, text=text, **names)

    def turned_away(self, name: str, reason: str) -> None:
        """A node cannot take part."""
        self._reporter.event("error", f"{name}: turned away: {reason}", node=name)
        self._write("turned away", name=name, reason=reason)

    def replied(self, name: str, images: int | None, seconds: float) -> None:
        """A node's reply was accepted; images is None if the server does not know it."""
        told = "replied" if images is None else f"{images:,} images"
        values = {"node": name, "images": images, "seconds": round(seconds, 2)}
        self._reporter.event("info", f"{name}: {told}, {seconds:.1f} s", **values)
        self._write("replied", name=name, images=images, seconds=round(seconds, 3))

    def refused(self, name: str, round_number: int, reason: str) -> None:
        """A node's reply was refused or is missing."""
        text = f"round {round_number}: {name}: {reason}"
        self._reporter.event("warning", text, round=round_number, node=name)
        self._write("refused", name=name, round=round_number, reason=reason)

    def finished_round(self, record: Mapping[str, Any], rounds: int) -> None:
        """A round of `rounds` is complete."""
        number, loss, n_bytes = record["round"], record["loss"], record.get("bytes_sent", 0)
        text = f"round {number} of {rounds}: {record.get('replies', 0)} replies, loss {loss:.3f}"
        text += f", {n_bytes / 1e6:.2f} MB, {record['seconds']:.1f} s"
        values = {"bytes": n_bytes, "seconds": record["seconds"], "loss": loss}
        self._reporter.event("info", text, round=number, **values)
        self._write("round", rounds=rounds, record=dict(record))

    def finished(self) -> None:
        """The last round is complete."""
        self._reporter.event("info", "finished")
        self._write("finished")

    def failed(self, reason: str) -> None:
        """Training cannot continue."""
        self._write("failed", reason=reason)

    def _write(self, event: str, **values: Any) -> None:
        if self._path is None:
            return
        line = {"time": round(time.time(), 3), "event": event} | values
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as stream:  # one line, one write
            stream.write(printable_json(line) + "\n")
