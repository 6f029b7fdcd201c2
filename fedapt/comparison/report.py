"""The comparison's page: one HTML file with everything inside."""

from __future__ import annotations

from pathlib import Path

from fedapt.comparison.plan import LEAVE_ONE_OUT, PROTOCOLS, Plan, shared_settings
from fedapt.comparison.result import CellResult
from fedapt.comparison.run import Comparison
from fedapt.comparison.table import Row, show_rates
from fedapt.core.config import Config
from fedapt.core.files import write_text
from fedapt.pages.figure import COLOURS, FEDAPT_COLOUR, ZERO_SHOT_COLOUR
from fedapt.pages.plots import plot_bars, plot_lines, plot_routing
from fedapt.pages.render import render
from fedapt.run.train import list_changes
from fedapt.training.methods import METHODS

_SAYS = dict(
    zip(
        PROTOCOLS,
        (
            "Every domain trains, and is tested on its test images.",
            "Each domain in turn is left out of training and tested.",
            "Each domain has several clients, with labels drawn from a Dirichlet distribution.",
            "Each class and domain has a few training images.",
        ),
        strict=True,
    )
)


def write_report(comparison: Comparison, rows: list[Row], config: Config, path: Path) -> None:
    """Write the page.

    Args:
        config: settings that all cells share.

    Raises:
        FileError: the folder cannot be written.
    """
    colours = _colour_methods(rows)
    sections = [
        {
            "name": protocol,
            "says": _SAYS[protocol],
            "rows": members,
            "best": max((r.mean.mean for r in members if r.mean), default=0.0),
            "bars": _bars(members, colours),
            "lines": _curves(comparison, members, colours, by_bytes=False),
            "bytes": _curves(comparison, members, colours, by_bytes=True),
            "routing": _routing(comparison, members),
        }
        for protocol in comparison.plan.protocols
        if (members := [row for row in rows if row.protocol == protocol])
    ]
    write_text(
        path,
        render(
            "fedapt.comparison",
            "report.html.j2",
            plan=comparison.plan,
            domains=comparison.domains,
            settings=shared_settings(config),
            demands=_demands(comparison.plan, config),
            has_validation=config.data.validation_fraction > 0,
            show_rates=show_rates,
            sections=sections,
        ),
    )


def _demands(plan: Plan, config: Config) -> dict[str, list[str]]:
    """Settings that each method changes, by its title."""
    found = {
        METHODS[m].title: list_changes(config, METHODS[m].resolve(config)) for m in plan.methods
    }
    return {title: changes for title, changes in found.items() if changes}


def _colour_methods(rows: list[Row]) -> dict[str, str]:
    titles = list(dict.fromkeys(row.title for row in rows))
    free = iter(COLOURS[1:] * (1 + len(titles)))
    fixed = {"FedAPT": FEDAPT_COLOUR, "zero-shot": ZERO_SHOT_COLOUR}
    return {title: fixed.get(title) or next(free) for title in titles}


def _bars(rows: list[Row], colours: dict[str, str]) -> str:
    series = {
        row.title: {
            **{name: (s.mean, s.std) for name, s in row.domains.items()},
            **({"mean": (row.mean.mean, row.mean.std)} if row.mean else {}),
        }
        for row in rows
        if row.domains
    }
    return plot_bars(series, colours, width=11) if series else ""


def _curves(
    comparison: Comparison, rows: list[Row], colours: dict[str, str], *, by_bytes: bool
) -> str:
    """Mean accuracy over the seeds and folds, over rounds or over MB sent."""
    lines = {}
    for row in rows:
        results = [r for r in _results(comparison, row) if r.curve]
        places: dict[int, list[float]] = {}
        sent: dict[int, int] = {}
        for result in results:
            for number, n_bytes, shares in result.curve:
                chosen = [shares[result.cell.fold]] if result.cell.fold else [*shares.values()]
                places.setdefault(number, []).append(sum(chosen) / len(chosen))
                sent[number] = n_bytes
        if places and (sent[max(sent)] or not by_bytes):
            x = [sent[n] / 1e6 if by_bytes else float(n) for n in sorted(places)]
            lines[row.title] = (x, [sum(places[n]) / len(places[n]) for n in sorted(places)])
    label = "MB sent by all clients and the server" if by_bytes else "round"
    return plot_lines(lines, colours, label, log=by_bytes) if lines else ""


def _routing(comparison: Comparison, rows: list[Row]) -> dict[str, str]:
    """Routing of methods with keys, mean over the seeds; folds have different keys."""
    plots = {}
    for row in rows:
        found = [r.routing for r in _results(comparison, row) if r.routing]
        if found and row.protocol != LEAVE_ONE_OUT:
            mean = {
                domain: {
                    key: sum(routing[domain][key] for routing in found) / len(found)
                    for key in found[0][domain]
                }
                for domain in found[0]
            }
            plots[row.title] = plot_routing(mean)
    return plots


def _results(comparison: Comparison, row: Row) -> list[CellResult]:
    return [r for r in comparison.chosen_results(row.protocol, row.method) if not r.error]
