"""The demo's plots, each an SVG to stand inside a page."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedapt.core.records import Record

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 11,
    "svg.fonttype": "none",  # text stays text: small, sharp, selectable
    "svg.hashsalt": "fedapt",  # the same data gives the same bytes
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa0a6",
    "axes.labelcolor": "#3c4043",
    "xtick.color": "#3c4043",
    "ytick.color": "#3c4043",
    "axes.grid.axis": "y",
    "grid.color": "#e8eaed",
}
ZERO_SHOT_COLOUR, FEDAPT_COLOUR = "#b0b7c3", "#2f6fde"
_DOMAIN_COLOURS = ("#2f6fde", "#e8710a", "#12936f", "#9334e6", "#d01884", "#6b7280")


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def _to_svg(figure: Figure) -> str:
    with mpl.rc_context(_STYLE):
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    return svg[svg.index("<svg") :]


def plot_accuracy(zero_shot: Mapping[str, float], fedapt: Mapping[str, float]) -> str:
    """Bars: accuracy of every domain, zero-shot beside FedAPT."""
    with _figure(6.4, 3.4) as (figure, axes):
        width = 0.38
        series = (("zero-shot", zero_shot, ZERO_SHOT_COLOUR), ("FedAPT", fedapt, FEDAPT_COLOUR))
        for offset, (name, shares, colour) in zip((-width / 2, width / 2), series, strict=True):
            positions = [i + offset for i in range(len(shares))]
            values = [100 * share for share in shares.values()]
            bars = axes.bar(positions, values, width - 0.03, label=name, color=colour)
            axes.bar_label(bars, fmt="%.0f", padding=2, color="#3c4043", fontsize=10)
        axes.set_xticks(range(len(fedapt)), list(fedapt))
        axes.set_ylim(0, 105)
        axes.set_ylabel("test accuracy, %")
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, loc="upper left", ncols=2)
        return _to_svg(figure)


def plot_rounds(records: Sequence[Record], domains: Sequence[str]) -> str:
    """Lines: accuracy of every domain after each round."""
    with _figure(6.4, 3.4) as (figure, axes):
        rounds = [record["round"] for record in records]
        for i, domain in enumerate(domains):
            values = [100 * record["accuracy"][domain] for record in records]
            colour = _DOMAIN_COLOURS[i % len(_DOMAIN_COLOURS)]
            axes.plot(rounds, values, color=colour, linewidth=1.8, label=domain)
        axes.set_xlim(1, max(2, rounds[-1]))
        axes.set_ylim(0, 105)
        axes.set_xlabel("round")
        axes.set_ylabel("test accuracy, %")
        axes.grid(visible=True)
        axes.legend(frameon=False, loc="lower right")
        return _to_svg(figure)


def plot_routing(routing: Mapping[str, Mapping[str, float]]) -> str:
    """Matrix: share of each domain's images (row) that each key's prompt was taken for (column)."""
    names = list(routing)
    with _figure(5.2, 4.2) as (figure, axes):
        shares = [[100 * routing[row][key] for key in names] for row in names]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=110)
        for i, row in enumerate(shares):
            for j, value in enumerate(row):
                colour = "white" if value > 60 else "#3c4043"
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour)
        axes.set_xticks(range(len(names)), names, rotation=25, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("key with the largest weight, % of images")
        axes.set_ylabel("image's domain")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return _to_svg(figure)
