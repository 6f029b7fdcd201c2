"""The demo's page: one HTML file with everything inside."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2

import fedapt
from fedapt.core.files import write_text
from fedapt.data.splits import rank_path
from fedapt.demo.plots import plot_accuracy, plot_rounds, plot_routing
from fedapt.demo.run import Classified, DemoResult

_SHOWN_PER_DOMAIN = 10


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
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    source = (files("fedapt.demo") / "report.html.j2").read_text("utf-8")
    zero_shot, trained = result.accuracy(result.zero_shot), result.accuracy(result.fedapt)
    page = environment.from_string(source).render(
        version=fedapt.__version__,
        result=result,
        zero_shot_mean=100 * result.mean(result.zero_shot),
        fedapt_mean=100 * result.mean(result.fedapt),
        rounds=len(result.records),
        bytes_sent=sum(record["bytes_sent"] for record in result.records),
        model_bytes=result.model.stat().st_size,
        accuracy_plot=plot_accuracy(zero_shot, trained),
        rounds_plot=plot_rounds(result.records, result.domains),
        routing_plot=plot_routing(result.routing()),
        sheet={domain: _tiles(result, domain) for domain in result.domains},
    )
    write_text(path, page)


def _tiles(result: DemoResult, domain: str) -> list[_Tile]:
    """The same emoji in every row, chosen without looking at the answers."""
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
            domain=item.prediction.domain or "",
            is_right=item.is_right,
        )
        for item in chosen
    ]
