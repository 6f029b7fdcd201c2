"""How far keys should lie apart, on validation images, in-domain and with a domain held out.

    python benchmarks/keys.py BUNDLE... --out DIR [--processes N] [--device cpu]
        [--precision bfloat16] [--quick]

Each variant of FedAPT's settings trains on four fifths of each client's training images; the round
is chosen on validation images of the domains that train. In-domain it is measured on the same
images; of a held-out domain on that domain's validation images, which have chosen nothing, under
the routed prompts and under the mean of all keys. Test images play no part. A BUNDLE is a folder's
features (benchmarks/bundles.py). A finished cell is a file in DIR.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import count, product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from fedapt.comparison.bench import open_images
from fedapt.core.config import read_config
from fedapt.core.files import write_text
from fedapt.core.report import Reporter
from fedapt.model.backbone import load_backbone
from fedapt.run.session import Session
from fedapt.training.evaluate import accuracy
from fedapt.training.loop import Progress
from fedapt.training.methods.fedapt import FedAPT

VARIANTS: dict[str, tuple[str, ...]] = {
    "uniform in [0, 1)": (),
    "normal, std 0.29": ("prompt.keys=normal",),
    "normal, std 1": ("prompt.keys=normal", "prompt.key_std=1"),
    "normal, std 2": ("prompt.keys=normal", "prompt.key_std=2"),
    "signs, 1": ("prompt.keys=signs", "prompt.key_std=1"),
    "normal, std 1, mean key": (
        "prompt.keys=normal",
        "prompt.key_std=1",
        "prompt.mean_key_loss=1",
    ),
    "normal, std 2, mean key": (
        "prompt.keys=normal",
        "prompt.key_std=2",
        "prompt.mean_key_loss=1",
    ),
    "uniform, mean key": ("prompt.mean_key_loss=1",),
}
RATES = ("0.1", "0.3", "1")
SEEDS = (0, 1, 2)
COMMON = (
    "train.evaluate_every=10",
    "train.router_lr=0.3",
    "data.validation_fraction=0.2",
)


@dataclass(frozen=True)
class Cell:
    """One training run; `fold` is the domain that is left out, or nothing."""

    data: str
    variant: str
    rate: str
    seed: int
    fold: str
    rounds: int
    precision: str

    @property
    def name(self) -> str:
        """Of its file."""
        words = [Path(self.data).stem, self.variant, f"lr {self.rate}", f"seed {self.seed}"]
        return " ".join([*words, self.fold or "in-domain"]).replace("/", "-") + ".json"


@cache
def open_data(data: str, device: str) -> tuple[Any, ...]:
    config = read_config(None, (), {"data.root": data})
    backbone = load_backbone("lite", "", device)
    return backbone, *open_images(config, backbone, Reporter())


def run(job: tuple[Cell, str]) -> tuple[Cell, dict[str, Any]]:
    cell, device = job
    overrides = (*COMMON, *VARIANTS[cell.variant], f"train.lr={cell.rate}")
    values = {
        "data.root": cell.data,
        "data.leave_out": cell.fold,
        "data.split_seed": cell.seed,
        "train.seed": cell.seed,
        "train.rounds": cell.rounds,
        "train.precision": cell.precision,
    }
    config = read_config(None, overrides, values)
    backbone, images, table = open_data(cell.data, device)
    images = images.split_again(config.data)
    domains = images.divide(table)
    session = Session(config, backbone, images.folders, domains)
    best = session.begin()

    def keep(progress: Progress) -> None:
        nonlocal best
        best = progress if progress.is_best else best

    session.run(best, keep, Reporter())
    method = session.method
    assert isinstance(method, FedAPT)
    predict = method.predictor(best.learned)
    with torch.inference_mode():
        generic = method.prompt_logits
        mean_key = method.setting.keys.mean(0)
    found: dict[str, Any] = {"round": best.rounds, "validation": {}, "mean_key": {}, "routed": {}}
    for domain in domains:
        images = domain.validation.load()
        found["validation"][domain.name] = accuracy(predict(images, None), images.labels)
        with torch.inference_mode():
            logits = generic(best.learned, mean_key, images.features)
            found["mean_key"][domain.name] = accuracy(logits.float(), images.labels)
        if domain.name in session.trained:
            chosen = method.routing(best.learned, images.features).argmax(-1)
            own = session.trained.index(domain.name)
            found["routed"][domain.name] = float((chosen == own).double().mean())
    return cell, found


def pin(started: Any) -> None:
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", help="bfloat16 where the CPU has it")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    seeds, rates, rounds = (SEEDS[:1], RATES[1:2], 2) if asked.quick else (SEEDS, RATES, 50)
    names = list(VARIANTS)[:2] if asked.quick else list(VARIANTS)
    cells = []
    for data in asked.bundles:
        _, images, _ = open_data(str(Path(data).resolve()), "cpu")
        # the most telling ones first: a sweep that is cut short is worth something
        for seed, rate, fold, variant in product(seeds, rates, ("", *images.domains), names):
            cells.append(
                Cell(str(Path(data).resolve()), variant, rate, seed, fold, rounds, asked.precision)
            )
    cells.sort(key=lambda cell: (cell.seed, cell.rate != "0.3"))
    missing = [cell for cell in cells if not (asked.out / cell.name).is_file()]
    context = get_context("spawn")
    done = count(len(cells) - len(missing) + 1)
    with ProcessPoolExecutor(
        asked.processes, context, initializer=pin, initargs=(context.Value("i", 0),)
    ) as pool:
        for cell, found in pool.map(run, [(cell, asked.device) for cell in missing]):
            write_text(asked.out / cell.name, json.dumps({"cell": asdict(cell)} | found) + "\n")
            print(f"{next(done)} of {len(cells)}: {cell.name}", flush=True)
    summarise(asked.out)


def summarise(out: Path) -> None:
    """Means over seeds, for each set, variant and rate."""
    groups: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for path in sorted(out.glob("*.json")):
        found = json.loads(path.read_text())
        if "cell" not in found:
            continue
        cell = Cell(**found["cell"])
        group = groups.setdefault((Path(cell.data).stem, cell.variant, cell.rate), {})
        for what in ("validation", "mean_key"):
            shares = found[what]
            share = shares[cell.fold] if cell.fold else fmean(shares.values())
            group.setdefault(f"{what} {'out' if cell.fold else 'in'}", []).append(share)
        if not cell.fold:
            group.setdefault("routed", []).append(fmean(found["routed"].values()))
    rows = []
    for (data, variant, rate), group in sorted(groups.items()):
        spreads = {
            what: {"mean": fmean(v), "std": stdev(v) if len(v) > 1 else 0.0, "n": len(v)}
            for what, v in group.items()
        }
        rows.append({"data": data, "variant": variant, "lr": rate} | spreads)
        shown = ", ".join(f"{w} {100 * s['mean']:.1f}" for w, s in spreads.items())
        print(f"{data:18} {variant:26} lr {rate}: {shown}")
    write_text(out / "keys.summary", json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
