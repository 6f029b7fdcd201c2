"""Draw docs/accuracy.svg from benchmarks/results/compare_office_caltech10.json."""

from __future__ import annotations

import json

from figures import RESULTS
from matplotlib import rc_context
from matplotlib.figure import Figure
from photos import ROOT

PROTOCOLS = {
    "in-domain": "domains that trained",
    "leave-one-out": "a domain left out",
}
GREY, BLUE = "#7d8590", "#2f6fde"
# title in the record -> label and colour, from the top
METHODS = {
    "zero-shot": ("zero-shot", GREY),
    "local only": ("each party alone", GREY),
    "linear probe": ("linear probe", GREY),
    "PromptFL": ("PromptFL", GREY),
    "FedAPT": ("FedAPT", BLUE),
    "adaptive analytic": ("adaptive analytic", BLUE),
    "analytic": ("pooled = analytic", "#000000"),
}


def main() -> None:
    report = json.loads((RESULTS / "compare_office_caltech10.json").read_text("utf-8"))
    rows = {(row["protocol"], row["title"]): row["mean"] for row in report["rows"]}
    style = {"svg.hashsalt": "fedapt", "font.size": 11, "font.family": "sans-serif"}
    with rc_context(style):
        figure = Figure(figsize=(6.6, 3.2), layout="constrained", facecolor="white")
        for axes, (protocol, heading) in zip(
            figure.subplots(1, 2, sharey=True), PROTOCOLS.items(), strict=True
        ):
            for place, (title, (label, colour)) in enumerate(METHODS.items()):
                found = rows[protocol, title]
                mean, std = 100 * found["mean"], 100 * found["std"]
                axes.errorbar(mean, label, xerr=std, fmt="o", color=colour, capsize=3)
                axes.annotate(
                    f"{mean:.1f}", (mean - std - 0.4, place), ha="right", va="center", color=colour
                )
            axes.set_title(heading, fontsize=11)
            axes.set_xlabel("test accuracy, %")
            axes.set_xlim(80, 100)
            axes.grid(axis="x", color="#e3e6ea")
            axes.set_axisbelow(True)
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
        figure.axes[0].invert_yaxis()
        figure.savefig(ROOT / "docs" / "accuracy.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
