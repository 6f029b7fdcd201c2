"""Charts as SVG: places by hand, names that are no markup."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from fedapt.report.answers import Bin
from fedapt.report.charts import choose_ticks, line_chart, reliability_chart


def places(svg: str, name: str) -> list[tuple[float, float]]:
    """The points of the first polyline of a class."""
    found = re.search(rf'class="line {name}" points="([^"]*)"', svg)
    assert found
    return [tuple(map(float, pair.split(","))) for pair in found[1].split()]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (1, 3, [1, 1.5, 2, 2.5, 3]),
        (0.52, 0.58, [0.52, 0.54, 0.56, 0.58]),
        (5, 5, [5, 6]),
        (0, 0, [0, 0.2]),
    ],
)
def test_ticks_are_round_and_hold_the_values(low: float, high: float, ticks: list[float]) -> None:
    assert choose_ticks(low, high) == pytest.approx(ticks)


def test_a_line_goes_from_corner_to_corner() -> None:
    svg = line_chart({"a": [(1, 0), (3, 100)]}, "round", "%", floor=0, limit=100)
    assert places(svg, "c0") == [(46, 184), (346, 30)]
    assert "<text" in svg


def test_a_single_value_has_a_place() -> None:
    svg = line_chart({"a": [(1, 7), (2, 7)]}, "round", "MB", floor=0)
    assert len(places(svg, "c0")) == 2
    assert "nan" not in svg


def test_a_name_is_text() -> None:
    svg = line_chart({"<script>x</script>\x1b": [(1, 1), (2, 2)]}, "round", "%")
    assert "<script" not in svg
    assert "\x1b" not in svg
    ET.fromstring(svg)


def test_a_perfect_bin_is_on_the_diagonal() -> None:
    svg = reliability_chart([Bin(1.0, 0.5, 0.5)])
    diagonal = re.search(r'"diagonal" x1="(\S+)" y1="(\S+)" x2="(\S+)" y2="(\S+)"', svg)
    assert diagonal
    x1, y1, x2, y2 = map(float, diagonal.groups())
    assert places(svg, "c0") == [((x1 + x2) / 2, (y1 + y2) / 2)]
    assert "100.0 % of the images: confidence 50.0 %, accuracy 50.0 %" in svg
