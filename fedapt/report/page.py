"""The run's page: one HTML file with everything inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedapt.core.config import flatten, remove_paths
from fedapt.core.records import Record
from fedapt.pages.render import render
from fedapt.report.answers import (
    class_results,
    confusion,
    expected_error,
    find_bins,
    worst_mistakes,
)
from fedapt.report.charts import N_COLOURS, line_chart, reliability_chart
from fedapt.report.figures import RunReport, describe_clip, say_count
from fedapt.report.pictures import thumbnail
from fedapt.training.evaluate import LOW_ROUTING, name_owners
from fedapt.training.loop import mean
from fedapt.training.methods.analytic import POOLED
from fedapt_runtime.printable import printable

_MATRIX_CLASSES = 12  # a larger matrix cannot be read
_LISTED_CLASSES = 30
_SHOWN_MISTAKES = 24


@dataclass(frozen=True)
class _Chart:
    """A chart with its legend: name -> colour class."""

    title: str
    svg: str
    legend: Mapping[str, str]


@dataclass(frozen=True)
class _Cell:
    """A cell of a matrix: a share, and whether it is on the expected place.

    Attributes:
        kind: `own` for the expected place, `other` for another, `pooled` for a bank of no domain.
    """

    share: float
    kind: str


@dataclass(frozen=True)
class _Picture:
    source: str
    name: str
    domain: str
    label: str
    guess: str
    confidence: float
    routed_to: str


def build_page(report: RunReport, *, pictures: bool) -> str:
    """The page as HTML.

    Args:
        pictures: show the worst mistakes with their file names.
    """
    bins = find_bins(report.answers)
    classes = report.info.classes
    results = class_results(report.answers, classes)
    settings = flatten(remove_paths(report.info.config))
    return render(
        "fedapt.report",
        "report.html.j2",
        report=report,
        shown=printable,
        model=describe_clip(report),
        figures=list_figures(report),
        rows=_accuracy_rows(report),
        low={n: s for n, s in report.routed.items() if s < LOW_ROUTING},
        low_routing=LOW_ROUTING,
        keys=_keys(report),
        pooled=POOLED,
        routing=_routing(report),
        reliability=reliability_chart(bins) if bins else "",
        error_of_all=expected_error(bins),
        charts=_charts(report),
        matrix_rows=_confusion_matrix(report)
        if results and len(classes) <= _MATRIX_CLASSES
        else {},
        results=results[:_LISTED_CLASSES],
        n_results=len(results),
        pictures=_pictures(report) if pictures else [],
        has_pictures=pictures,
        settings=settings,
    )


def list_figures(report: RunReport) -> dict[str, str]:
    """The figures at the head of the page: meaning -> figure."""
    found = {}
    for title, share in report.means.items():
        says = "mean accuracy over domains" if title == report.title else title
        found[says] = f"{100 * share:.1f} %"
    if report.routed:
        found["routed to their own domain"] = f"{100 * mean(report.routed):.0f} %"
    if report.calibration:
        found["expected calibration error"] = f"{100 * mean(report.calibration):.1f} %"
    if report.n_images:
        found["test images"] = f"{sum(report.n_images.values()):,}".replace(",", " ")
    if report.records:
        found[f"sent in {say_count(len(report.records), 'round')}"] = _say_bytes(
            sum(report.n_bytes)
        )
    if epsilon := next((r["epsilon"] for r in reversed(report.records) if "epsilon" in r), None):
        found["epsilon of differential privacy"] = f"{epsilon:.2f}"
    return found


def _accuracy_rows(report: RunReport) -> list[dict[str, Any]]:
    """One for each domain, then the mean: its images, and the share under each classifier."""
    series = {report.title: report.accuracy, **report.alternatives}
    names = list(report.n_images or report.accuracy)
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "n": report.n_images.get(name),
            "trained": name in report.info.domains,
            "bars": {title: shares[name] for title, shares in series.items() if name in shares},
        }
        for name in names
    ]
    if len(report.accuracy) > 1:
        rows.append({"name": "mean", "n": None, "trained": True, "bars": report.means})
    return rows


def _keys(report: RunReport) -> list[str]:
    routing = report.evaluation.routing if report.evaluation else {}
    return list(next(iter(routing.values()), {}))


def _routing(report: RunReport) -> dict[str, list[_Cell]]:
    """Domain -> the share of its test images that each key takes."""
    if report.evaluation is None:
        return {}
    tested = {n: s for n, s in report.evaluation.routing.items() if report.n_images[n]}
    return {
        domain: [_Cell(share, _kind(domain, key)) for key, share in shares.items()]
        for domain, shares in tested.items()
    }


def _kind(domain: str, key: str) -> str:
    if key == POOLED:
        return "pooled"
    return "own" if domain in name_owners(key) else "other"


def _confusion_matrix(report: RunReport) -> dict[str, list[_Cell]]:
    """Class -> the share of its test images that each class was answered for; of few classes."""
    if len(report.info.classes) > _MATRIX_CLASSES:
        return {}
    shares = confusion(report.answers, len(report.info.classes))
    return {
        name: [_Cell(share, "own" if i == j else "other") for j, share in enumerate(shares[i])]
        for i, name in enumerate(report.info.classes)
    }


def _charts(report: RunReport) -> list[_Chart]:
    """Charts of the values that change over the rounds; none after a single round."""
    records = report.records
    if len(records) < 2:
        return []
    charts = []
    measured = [record for record in records if record.get("accuracy")]
    if len(measured) > 1:
        names = [n for n in measured[-1]["accuracy"] if all(n in r["accuracy"] for r in measured)]
        lines = {n: [(r["round"], 100 * r["accuracy"][n]) for r in measured] for n in names}
        charts.append(_chart("Accuracy", lines, "test accuracy, %", limit=100.0))
    if loss := _points(records, "loss"):
        charts.append(_chart("Loss", {"loss": loss}, "mean over the clients' images", floor=0.0))
    if any(report.n_bytes):
        unit, size = _choose_unit(max(report.n_bytes))
        sent = [(r["round"], n / size) for r, n in zip(records, report.n_bytes, strict=True)]
        says = f"{unit}, all clients"
        charts.append(_chart("Sent in each round", {"sent": sent}, says, floor=0.0))
    return charts


def _points(records: list[Record], name: str) -> list[tuple[float, float]]:
    return [(r["round"], r[name]) for r in records if name in r]


def _chart(
    title: str,
    lines: Mapping[str, list[tuple[float, float]]],
    y_label: str,
    *,
    floor: float | None = None,
    limit: float | None = None,
) -> _Chart:
    legend = {name: f"c{i % N_COLOURS}" for i, name in enumerate(lines)} if len(lines) > 1 else {}
    svg = line_chart(lines, "round", y_label, floor=floor, limit=limit)
    return _Chart(title, svg, legend)


def _pictures(report: RunReport) -> list[_Picture]:
    """The worst mistakes that can be read."""
    classes = report.info.classes
    pictures = [
        _Picture(
            source=thumbnail(answer.path, report.info.preprocessing),
            name="/".join(answer.path.parts[-2:]),
            domain=answer.domain,
            label=classes[answer.label],
            guess=classes[answer.chosen],
            confidence=answer.confidence,
            routed_to=answer.routed_to,
        )
        for answer in worst_mistakes(report.answers, _SHOWN_MISTAKES)
    ]
    return [picture for picture in pictures if picture.source]


def _say_bytes(n: int) -> str:
    unit, size = _choose_unit(n)
    return f"{n / size:.1f} {unit}"


def _choose_unit(n: int) -> tuple[str, float]:
    """The unit for a number of bytes, and how many it has."""
    return ("MB", 1e6) if n >= 1e5 else ("kB", 1e3)
