"""Draw docs/accuracy.svg from benchmarks/results/compare_office_caltech10.json."""

from __future__ import annotations

import json

from figures import RESULTS
from matplotlib import rc_context
from matplotlib.figure import Figure
from photos import ROOT

PROTOCOLS = {
    "in-domain": "images of the domains that trained",
    "leave-one-out": "images of a domain that took no part",
}
COLOURS = {
    "zero-shot": "#b0b7c3",
    "local only": "#b0b7c3",
    "PromptFL": "#b0b7c3",
    "FedAPT": "#2f6fde",
    "adaptive analytic": "#7fa6ec",
}


def main() -> None:
    report = json.loads((RESULTS / "compare_office_caltech10.json").read_text("utf-8"))
    rows = {(row["protocol"], row["title"]): row["mean"] for row in report["rows"]}
    names = list(reversed(COLOURS))
    style = {"svg.hashsalt": "fedapt", "font.size": 11, "font.family": "sans-serif"}
    with rc_context(style):
        figure = Figure(figsize=(8.4, 2.7), layout="constrained", facecolor="white")
        for axes, (protocol, title) in zip(
            figure.subplots(1, 2, sharey=True), PROTOCOLS.items(), strict=True
        ):
            means = [100 * rows[protocol, name]["mean"] for name in names]
            bars = axes.barh(
                names,
                means,
                0.7,
                xerr=[100 * rows[protocol, name]["std"] for name in names],
                error_kw={"ecolor": "#5f6368", "capsize": 3, "elinewidth": 1},
                color=[COLOURS[name] for name in names],
            )
            axes.bar_label(bars, labels=[f"{mean:.1f}" for mean in means], label_type="center")
            axes.set_title(title, fontsize=11)
            axes.set_xlabel("test accuracy, %")
            axes.set_xlim(0, 103)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
        figure.savefig(ROOT / "docs" / "accuracy.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
