"""Charts as inline SVG; the page sets the colours, also in dark mode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from fedapt.report.answers import Bin
from fedapt_runtime.printable import printable

# sizes of a chart in its own units; the page scales it to its width
_WIDTH, _HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 30, 36
N_COLOURS = 8

Points = Sequence[tuple[float, float]]


class _Plane:
    """Conversion of values to coordinates in the chart."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self._x, self._y = x, y

    def x(self, value: float) -> float:
        low, high = self._x
        share = (value - low) / ((high - low) or 1)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 2)

    def y(self, value: float) -> float:
        low, high = self._y
        share = (value - low) / ((high - low) or 1)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 2)


def choose_ticks(low: float, high: float, n: int = 5) -> list[float]:
    """About `n` round numbers from at or below `low` to at or above `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / n))
    step = next((m * power for m in (1, 2, 5, 10) if span / (m * power) <= n), 10 * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def line_chart(
    lines: Mapping[str, Points],
    x_label: str,
    y_label: str,
    *,
    floor: float | None = None,
    limit: float | None = None,
) -> str:
    """Lines of finite values; the order of the lines gives their colours.

    Args:
        lines: name -> (x, y), x ascending.
        floor: minimum of the y axis; None for a round number below the values.
        limit: maximum possible y; the axis ends there.
    """
    points = [point for line in lines.values() for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks = [t for t in choose_ticks(min(xs), max(xs)) if min(xs) <= t <= max(xs) and t % 1 == 0]
    y_ticks = choose_ticks(min(ys) if floor is None else floor, max(ys), 4)
    if limit is not None:
        y_ticks = [tick for tick in y_ticks if tick <= limit]
    plane = _Plane((min(xs), max(xs)), (y_ticks[0], y_ticks[-1]))
    parts = [_axes(plane, x_ticks, y_ticks, x_label, y_label)]
    for i, (name, line) in enumerate(lines.items()):
        path = " ".join(f"{plane.x(x)},{plane.y(y)}" for x, y in line)
        colour = f"c{i % N_COLOURS}"
        parts.append(
            f'<polyline class="line {colour}" points="{path}">'
            f"<title>{escape(printable(name))}</title></polyline>"
        )
        x, y = line[-1]
        parts.append(f'<circle class="dot {colour}" cx="{plane.x(x)}" cy="{plane.y(y)}" r="3"/>')
    return _svg(parts, f"{y_label} by {x_label}")


def reliability_chart(bins: Sequence[Bin]) -> str:
    """Accuracy by confidence; on the diagonal both are equal."""
    plane = _Plane((0, 100), (0, 100))
    ticks = [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    parts = [_axes(plane, ticks, ticks, "confidence, %", "accuracy, %")]
    parts.append(
        f'<line class="diagonal" x1="{plane.x(0)}" y1="{plane.y(0)}"'
        f' x2="{plane.x(100)}" y2="{plane.y(100)}"/>'
    )
    points = [(100 * held.confidence, 100 * held.accuracy) for held in bins]
    path = " ".join(f"{plane.x(x)},{plane.y(y)}" for x, y in points)
    parts.append(f'<polyline class="line c0" points="{path}"/>')
    for held, (x, y) in zip(bins, points, strict=True):
        radius = round(3 + 9 * math.sqrt(held.share), 2)
        parts.append(
            f'<circle class="bin c0" cx="{plane.x(x)}" cy="{plane.y(y)}" r="{radius}"><title>'
            f"{100 * held.share:.1f} % of the images: confidence {x:.1f} %, accuracy {y:.1f} %"
            "</title></circle>"
        )
    return _svg(parts, "accuracy by confidence")


def _axes(
    plane: _Plane,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_label: str,
    y_label: str,
) -> str:
    bottom = _HEIGHT - _BOTTOM
    parts = []
    for tick in y_ticks:
        y = plane.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x = plane.x(tick)
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text class="label" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 3}" text-anchor="end">'
        f"{escape(x_label)}</text>"
    )
    parts.append(f'<text class="label" x="0" y="12">{escape(y_label)}</text>')
    return "".join(parts)


def _svg(parts: Sequence[str], says: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(says)}">'
        f"{''.join(parts)}</svg>"
    )
