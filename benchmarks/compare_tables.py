"""A comparison's results as the tables of docs/methods.md.

python benchmarks/compare_tables.py RESULTS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fedapt.training.methods import METHODS


def show(spread: dict[str, float]) -> str:
    """Mean and standard deviation in %."""
    return f"{100 * spread['mean']:.1f} ± {100 * spread['std']:.1f}"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows of one protocol, the best mean first."""
    protocol = rows[0]["protocol"]
    domains = list(rows[0]["domains"])
    columns = [protocol, *domains, "mean", "routed", "lr", "trained values", "MB a round"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in sorted(rows, key=lambda row: -row["mean"]["mean"]):
        has_rate = row["parameters"] and not METHODS[row["method"]].adds_up
        cells = [
            row["title"],
            *(show(row["domains"][domain]) for domain in domains),
            show(row["mean"]),
            f"{100 * row['routed']['mean']:.0f} %" if row.get("routed") else "",
            ", ".join(f"{rate:g}" for rate in row["rates"]) if has_rate else "",
            f"{row['parameters']:,}",
            f"{row['bytes_per_round'] / 1e6:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    rows = json.loads(Path(sys.argv[1]).read_text("utf-8"))["rows"]
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        print("\n".join(table([row for row in rows if row["protocol"] == protocol])), end="\n\n")


if __name__ == "__main__":
    main()
