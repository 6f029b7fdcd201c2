"""Draw docs/accuracy.svg from benchmarks/results/office_caltech10.json."""

from __future__ import annotations

import json

from figures import RESULTS
from matplotlib import rc_context
from matplotlib.figure import Figure
from photos import ROOT

COLOURS = {"zero-shot": "#b0b7c3", "FedAPT": "#2f6fde"}


def main() -> None:
    report = json.loads((RESULTS / "office_caltech10.json").read_text("utf-8"))
    series = {"zero-shot": report["zero_shot"], "FedAPT": report["fedapt"]["recommended"]}
    style = {"svg.hashsalt": "fedapt", "font.size": 11, "font.family": "sans-serif"}
    with rc_context(style):
        figure = Figure(figsize=(7.6, 3.2), layout="constrained", facecolor="white")
        axes = figure.subplots()
        for offset, (name, result) in zip((-0.2, 0.2), series.items(), strict=True):
            groups = [*result["domains"].items(), ("mean", result["mean"])]
            positions = [i + offset for i in range(len(groups))]
            means = [100 * group["mean"] for _, group in groups]
            bars = axes.bar(
                positions,
                means,
                0.37,
                yerr=[100 * group["std"] for _, group in groups],
                error_kw={"ecolor": "#5f6368", "capsize": 3, "elinewidth": 1},
                color=COLOURS[name],
                label=name,
            )
            axes.bar_label(bars, labels=[f"{m:.1f}" for m in means], label_type="center")
        axes.set_xticks(range(len(groups)), [name for name, _ in groups])
        axes.set_ylim(0, 112)
        axes.set_yticks(range(0, 101, 20))
        axes.set_ylabel("test accuracy, %")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", length=0)
        axes.legend(frameon=False, loc="upper left", ncols=2)
        figure.savefig(ROOT / "docs" / "accuracy.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
