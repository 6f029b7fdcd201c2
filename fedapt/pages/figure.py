"""One style for all plots. Each plot is an SVG inside a page."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
INK = "#3c4043"
ZERO_SHOT_COLOUR, FEDAPT_COLOUR = "#b0b7c3", "#2f6fde"
COLOURS = (
    FEDAPT_COLOUR,
    "#e8710a",
    "#12936f",
    "#9334e6",
    "#d01884",
    "#6b7280",
    "#a07800",
    "#00838f",
    "#c5221f",
    "#7cb342",
)


@contextmanager
def new_figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of `width` x `height` inches in the common style."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def to_svg(figure: Figure) -> str:
    """The figure as an <svg> element; the same data gives the same bytes."""
    with mpl.rc_context(_STYLE):
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    return svg[svg.index("<svg") :]
