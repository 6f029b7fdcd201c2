"""How far FedAPT gets on Office-Caltech10 with `lite` by its own rules, beside ridge regression.

    python benchmarks/headroom.py [--quick]

Each variant changes one thing of the paper's settings, and takes the learning rate that is best on
validation images, a fifth of each client's training images, as the mean of three seeds with a split
each. What is best on validation is trained once more on all training images, and only that is
looked at on test images.
Ridge regression on all clients' pooled features, which no federation may do, is the mark.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path
from statistics import fmean, stdev

from figures import publish
from office_caltech10 import Office, spread
from photos import ROOT, photos_root
from pooled import fit_ridge, pooled_accuracy

from fedapt.compare.plan import IN_DOMAIN, Plan
from fedapt.compare.run import compare
from fedapt.core.config import read_config
from fedapt.core.report import Reporter

SEEDS = (0, 1, 2)
RATES = (0.03, 0.1, 0.3)
VARIANTS: dict[str, tuple[str, ...]] = {
    "the paper's (M = 24)": (),
    "M = 16": ("prompt.context_length=16",),
    'M = 16, start "a photo of a"': ("prompt.context_length=16", "prompt.start='a photo of a'"),
    "shared context": ("prompt.class_specific=false",),
    "tau = 0.1": ("prompt.temperature=0.1",),
    "orthogonal keys": ("prompt.keys=orthogonal",),
    "weighting by samples": ("train.weighting=samples",),
    "cosine schedule": ("train.schedule=cosine",),
    "batch 64": ("train.batch_size=64",),
}


def validate(root: Path, work: Path, name: str, overrides: tuple[str, ...]) -> dict[str, object]:
    """Validation accuracy of a variant at its best learning rate."""
    options = {"data.root": str(root), "data.validation_fraction": 0.2}
    config = read_config(ROOT / "configs" / "office_caltech10_paper.toml", overrides, options)
    plan = Plan(("fedapt",), (IN_DOMAIN,), SEEDS, RATES)
    folder = work / "".join(c if c.isalnum() else "-" for c in name)
    found = compare(config, plan, folder, "cpu", Reporter())
    lr = found.rates["fedapt"]
    scores = [
        found.results[cell].validation
        for cell in plan.cells(IN_DOMAIN, "fedapt", lr, found.domains)
    ]
    print(
        f"{name:32} lr {lr:<5g} {100 * fmean(scores):.2f} ± {100 * stdev(scores):.2f}", flush=True
    )
    return {
        "variant": name,
        "overrides": list(overrides),
        "lr": lr,
        "validation": spread(scores),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two variants: a check, no result")
    parser.add_argument("--work", type=Path, help="keep finished cells here")
    options = parser.parse_args()
    root = photos_root()
    variants = dict(list(VARIANTS.items())[:2]) if options.quick else VARIANTS
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        found = [validate(root, work, name, overrides) for name, overrides in variants.items()]
    best = max(found, key=lambda row: row["validation"]["mean"])  # type: ignore[index]
    office = Office(root)
    config = read_config(
        ROOT / "configs" / "office_caltech10_paper.toml",
        best["overrides"],  # type: ignore[arg-type]
        {"data.root": str(root), "train.lr": best["lr"]},
    )
    scores, ridge = [], []
    for seed in SEEDS:
        domains = office.domains(seed)
        train = dataclasses.replace(config.train, seed=seed)
        scores.append(office.run(dataclasses.replace(config, train=train), domains).mean)
        ridge.append(pooled_accuracy(domains, fit_ridge))
    report = {
        "model": "lite",
        "seeds": list(SEEDS),
        "rates": list(RATES),
        "variants": found,
        "best": best["variant"],
        "test_of_the_best": spread(scores),
        "test_of_ridge_on_pooled_features": spread(ridge),
    }
    publish("headroom", report, keep=not options.quick)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()
