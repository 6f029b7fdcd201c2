"""The demo's page: one HTML file with everything inside."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from fedapt.core.files import write_text
from fedapt.data.splits import rank_path
from fedapt.demo.run import Classified, DemoResult
from fedapt.pages.figure import COLOURS, FEDAPT_COLOUR, ZERO_SHOT_COLOUR
from fedapt.pages.plots import plot_bars, plot_rounds, plot_routing
from fedapt.pages.render import render

_SHOWN_PER_DOMAIN = 10
_COLOURS = (ZERO_SHOT_COLOUR, COLOURS[2], FEDAPT_COLOUR, COLOURS[1])


@dataclass(frozen=True)
class _Tile:
    source: str
    label: str
    guess: str
    score: str
    domain: str
    is_right: bool


def write_report(result: DemoResult, path: Path) -> None:
    """Write the page.

    Raises:
        FileError: the folder cannot be written.
    """
    accuracies = {
        name: {domain: (share, 0.0) for domain, share in result.accuracy(items).items()}
        for name, items in result.tables().items()
    }
    page = render(
        "fedapt.demo",
        "report.html.j2",
        result=result,
        zero_shot_mean=100 * result.mean(result.zero_shot),
        fedapt_mean=100 * result.mean(result.fedapt),
        rounds=len(result.records),
        bytes_sent=sum(record["bytes_sent"] for record in result.records),
        model_bytes=result.model.stat().st_size,
        alone_mean=100 * result.mean(result.alone),
        closed_mean=100 * result.mean(result.closed),
        accuracy_plot=plot_bars(accuracies, dict(zip(accuracies, _COLOURS, strict=True))),
        rounds_plot=plot_rounds(result.records, result.domains),
        routing_plot=plot_routing(result.routing()),
        sheet={domain: _tiles(result, domain) for domain in result.domains},
    )
    write_text(path, page)


def _tiles(result: DemoResult, domain: str) -> list[_Tile]:
    """The same emoji in every row, selected independently of the predictions."""
    members = [item for item in result.fedapt if item.domain == domain]
    by_class: dict[str, Classified] = {}
    for item in sorted(members, key=lambda item: rank_path(1, item.path.name)):
        by_class.setdefault(item.label, item)
    chosen = [by_class[name] for name in sorted(by_class)][:_SHOWN_PER_DOMAIN]
    return [
        _Tile(
            source="data:image/png;base64," + base64.b64encode(item.path.read_bytes()).decode(),
            label=item.label,
            guess=item.prediction.label or "unreadable",
            score=f"{100 * (item.prediction.score or 0):.0f} %",
            domain=item.prediction.routed_to or "",
            is_right=item.is_right,
        )
        for item in chosen
    ]
