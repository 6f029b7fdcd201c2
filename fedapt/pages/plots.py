"""The plots of the pages, each an SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.ticker import MaxNLocator

from fedapt.core.records import Record
from fedapt.pages.figure import COLOURS, INK, new_figure, to_svg

# mean and spread of a share
Spread = tuple[float, float]


def plot_bars(
    series: Mapping[str, Mapping[str, Spread]], colours: Mapping[str, str], width: float = 6.4
) -> str:
    """Bars: accuracy of every domain, one bar for each of the series; error bars where they spread.

    Args:
        series: name -> domain -> share and its spread.
        colours: name -> colour.
        width: inches.
    """
    with new_figure(width, 3.4) as (figure, axes):
        groups = list(next(iter(series.values())))
        step = 0.8 / len(series)
        for i, (name, shares) in enumerate(series.items()):
            offset = (i - (len(series) - 1) / 2) * step
            positions = [place + offset for place in range(len(groups))]
            means = [100 * shares[group][0] for group in groups]
            spreads = [100 * shares[group][1] for group in groups]
            bars = axes.bar(
                positions,
                means,
                0.92 * step,
                yerr=spreads if any(spreads) else None,
                error_kw={"ecolor": "#5f6368", "elinewidth": 1},
                label=name,
                color=colours[name],
            )
            if len(series) <= 2:
                axes.bar_label(bars, fmt="%.0f", padding=2, color=INK, fontsize=10)
        axes.set_xticks(range(len(groups)), groups)
        axes.set_ylabel("test accuracy, %")
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        if len(series) <= 2:
            axes.set_ylim(0, 105)
            axes.legend(frameon=False, loc="upper left", ncols=2)
        else:  # many bars: the axis begins below the smallest bar
            lowest = min(100 * share for shares in series.values() for share, _ in shares.values())
            axes.set_ylim(max(0, 10 * ((lowest - 3) // 10)), 103)
            figure.legend(frameon=False, loc="outside lower center", ncols=5, fontsize=9.5)
        return to_svg(figure)


def plot_rounds(records: Sequence[Record], domains: Sequence[str]) -> str:
    """Lines: accuracy of every domain after each round that was measured."""
    measured = [record for record in records if "accuracy" in record]
    rounds = [record["round"] for record in measured]
    lines = {
        domain: (rounds, [record["accuracy"][domain] for record in measured]) for domain in domains
    }
    colours = {domain: COLOURS[i % len(COLOURS)] for i, domain in enumerate(domains)}
    return plot_lines(lines, colours, "round", floor=0)


def plot_lines(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    colours: Mapping[str, str],
    x_label: str,
    *,
    log: bool = False,
    floor: float | None = None,
    width: float = 6.4,
) -> str:
    """Lines of accuracy over rounds or bytes.

    Args:
        lines: name -> values on the x axis, and shares.
        log: a logarithmic x axis.
        floor: minimum of the y axis, %; None to fit the lines.
    """
    with new_figure(width, 3.4) as (figure, axes):
        for name, (places, shares) in lines.items():
            values = [100 * share for share in shares]
            axes.plot(places, values, "o-", color=colours[name], label=name, lw=1.8, ms=2.5)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        elif lines:
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        lowest = min((100 * s for _, shares in lines.values() for s in shares), default=0)
        axes.set_ylim(max(0, 5 * ((lowest - 2) // 5)) if floor is None else floor, 101)
        axes.set_xlabel(x_label)
        axes.set_ylabel("test accuracy, %")
        axes.grid(visible=True)
        figure.legend(frameon=False, loc="outside lower center", ncols=4, fontsize=9)
        return to_svg(figure)


def plot_routing(routing: Mapping[str, Mapping[str, float]]) -> str:
    """Matrix: share of each domain's images (row) that are routed to each key (column)."""
    names = list(routing)
    keys = list(next(iter(routing.values())))
    with new_figure(5.2, 4.2) as (figure, axes):
        shares = [[100 * routing[row][key] for key in keys] for row in names]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=110)
        for i, row in enumerate(shares):
            for j, value in enumerate(row):
                colour = "white" if value > 60 else INK
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour)
        axes.set_xticks(range(len(keys)), keys, rotation=25, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("key with the maximum weight, % of images")
        axes.set_ylabel("image's domain")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return to_svg(figure)
