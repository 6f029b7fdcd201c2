"""Accuracy with trained CLIP towers, on a machine that reaches a hub and has the data sets.

    python benchmarks/real_clip.py --root FOLDER --out DIR [--models NAMES] [--sets NAMES]
        [--methods NAMES] [--protocols NAMES] [--seeds 5] [--lr 0.03,0.3,3] [--rounds N]
        [--device auto] [--processes 1] [--random]

FOLDER has the data sets as office_caltech10, pacs, office_home and domainnet; missing ones are
named and omitted. Each pair of a tower and a data set is one `fedapt.compare` with
configs/NAME.toml, in DIR/TOWER/NAME. Its finished cells are files, so the same command continues
after an interruption. Before a comparison the script trains two rounds of FedAPT and prints the
hours that the missing cells need. Features are computed once a tower and data set, before these
hours. `--random` takes random weights: a check of the chain without a hub, no result. Writes
benchmarks/results/real_clip.json, and prints the tables of each pair.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare_tables import table
from figures import publish
from photos import ROOT

import fedapt
from fedapt.comparison.plan import PROTOCOLS
from fedapt.comparison.run import Comparison
from fedapt.core.config import read_config
from fedapt.core.report import PlainReporter
from fedapt.training.methods import METHODS

MODELS = {
    "vit-b-32-openai": ("ViT-B-32-quickgelu", "openai"),
    "vit-b-32-laion": ("ViT-B-32", "laion2b_s34b_b79k"),
    "vit-b-16-openai": ("ViT-B-16-quickgelu", "openai"),
    "vit-b-16-laion": ("ViT-B-16", "laion2b_s34b_b88k"),
}
SETS = ("office_caltech10", "pacs", "office_home", "domainnet")
COMPARED = (
    "zero-shot",
    "linear-probe",
    "fedclip",
    "local",
    "promptfl",
    "adapt",
    "fedapt",
    "analytic",
    "adaptive-analytic",
)
RATES = [0.03, 0.3, 3.0]
PROBE_ROUNDS = 2


@dataclass(frozen=True)
class Job:
    """One comparison."""

    model: str
    data: str
    root: Path
    out: Path
    options: argparse.Namespace

    def compare(self, out: Path, **options: Any) -> Comparison:
        """`fedapt.compare` with the job's tower, images and settings."""
        name, pretrained = MODELS[self.model]
        return fedapt.compare(
            self.root,
            out,
            settings=ROOT / "configs" / f"{self.data}.toml",
            overrides=("train.evaluate_every=10",),
            device=self.options.device,
            reporter=PlainReporter(),
            model=name,
            pretrained="random" if self.options.random else pretrained,
            **options,
        )

    def run(self) -> list[dict[str, Any]]:
        """Rows of the tables."""
        asked = self.options
        rounds = {} if asked.rounds is None else {"rounds": asked.rounds}
        self._print_hours()
        self.compare(
            self.out,
            methods=asked.methods,
            protocols=asked.protocols,
            seeds=asked.seeds,
            lrs=asked.lr,
            processes=asked.processes,
            **rounds,
        )
        rows: list[dict[str, Any]] = json.loads((self.out / "results.json").read_text())["rows"]
        return rows

    def _print_hours(self) -> None:
        """Hours of training in the missing cells, from two rounds of FedAPT with every client."""
        asked, settings = self.options, ROOT / "configs" / f"{self.data}.toml"
        with tempfile.TemporaryDirectory() as folder:
            probe = self.compare(
                Path(folder), methods=["fedapt"], seeds=1, lrs=asked.lr[:1], rounds=PROBE_ROUNDS
            )
        (result,) = probe.results.values()
        rounds = asked.rounds or read_config(settings).train.rounds
        trained = [m for m in asked.methods if m != "zero-shot" and not METHODS[m].adds_up]
        folds = sum(len(probe.domains) if p == "leave-one-out" else 1 for p in asked.protocols)
        cells = len(trained) * folds * asked.seeds * len(asked.lr)
        finished = sum(
            1 for path in self.out.glob("cells/**/*.json") if path.parent.name in trained
        )
        hours = (cells - finished) * rounds * result.seconds / PROBE_ROUNDS / 3600
        print(
            f"{self.model}, {self.data}: {finished} of {cells} trained cells are finished; the"
            f" others train {rounds} rounds each, {hours / asked.processes:.1f} h in all",
            flush=True,
        )


def names_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A type for argparse: known names, separated by commas."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(known)}")
        return names

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the comparisons")
    parser.add_argument("--models", type=names_of(list(MODELS)), default=list(MODELS))
    parser.add_argument("--sets", type=names_of(SETS), default=list(SETS))
    parser.add_argument("--methods", type=names_of(list(METHODS)), default=list(COMPARED))
    parser.add_argument("--protocols", type=names_of(PROTOCOLS), default=list(PROTOCOLS[:2]))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lr", type=lambda text: list(map(float, text.split(","))), default=RATES)
    parser.add_argument("--rounds", type=int, help="[those of the config]")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--random", action="store_true", help="random weights: a check")
    options = parser.parse_args()
    roots = {name: options.root / name for name in options.sets}
    for name, root in roots.items():
        if not root.is_dir():
            print(f"{root} is missing: the table lacks {name}")
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for model in options.models:
        for name, root in roots.items():
            if root.is_dir():
                rows = Job(model, name, root, options.out / model / name, options).run()
                found.setdefault(model, {})[name] = rows
                print_tables(f"{model}, {name}", rows)
    if not found:
        sys.exit(f"no data set in {options.root}: expected any of {', '.join(options.sets)}")
    if not options.random:
        publish("real_clip", {"seeds": options.seeds, "rates": options.lr, "rows": found})


def print_tables(title: str, rows: list[dict[str, Any]]) -> None:
    """One table for each protocol."""
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        lines = table([row for row in rows if row["protocol"] == protocol])
        print("\n".join([f"\n{title}", "", *lines, ""]), flush=True)


if __name__ == "__main__":
    main()
