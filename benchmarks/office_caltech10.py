"""FedAPT with `lite` on Office-Caltech10, thirty seeds, beside zero-shot and a centralised probe.

    python benchmarks/office_caltech10.py [--quick]

Every seed has its own 80/20 split, keys and batches. Run as they stand are the paper's settings
(configs/office_caltech10_paper.toml) and the recommended ones (configs/office_caltech10.toml),
which validation images chose (benchmarks/headroom.py). Classifiers on all clients' pooled
features, which no federation may do, show what the frozen features and text tower allow.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from statistics import fmean, stdev

from figures import publish
from photos import ROOT, photos_root
from pooled import pooled_accuracy, pooled_fits

from fedapt.core.config import Config, read_config
from fedapt.core.report import Reporter
from fedapt.data.domains import Domain, divide_table, load_table
from fedapt.data.folders import scan_folders
from fedapt.data.splits import split_folders
from fedapt.model.backbone import load_backbone
from fedapt.model.image_encoder import image_encoder
from fedapt.run.session import Session
from fedapt.train.evaluate import Evaluation

SEEDS = tuple(range(30))


class Office:
    """The photos with their features, split anew for each seed."""

    def __init__(self, root: Path) -> None:
        self.config = read_config(
            ROOT / "configs" / "office_caltech10_paper.toml", (), {"data.root": str(root)}
        )
        self.backbone = load_backbone("lite")
        self.folders = scan_folders(root, self.config.data.class_names)
        samples = [s for domain in self.folders.domains for s in self.folders.samples[domain]]
        encoder = image_encoder(self.backbone)
        self.table = load_table(self.folders, samples, encoder, Reporter())

    def domains(self, seed: int, validation_fraction: float = 0.0) -> list[Domain]:
        """Training and test images of a seed, and validation images out of the former."""
        split = split_folders(
            self.folders,
            self.config.data.test_fraction,
            seed,
            validation_fraction=validation_fraction,
        )
        return divide_table(self.table, self.folders, split)

    def run(self, config: Config, domains: list[Domain]) -> Evaluation:
        """Train and evaluate."""
        session = Session(config, self.backbone, self.folders, domains)
        return session.evaluate(session.run(session.begin(), lambda _: None, Reporter()))


def spread(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation."""
    return {"mean": fmean(values), "std": stdev(values)}


def summarise(evaluations: list[Evaluation]) -> dict[str, object]:
    """Mean and spread over the seeds, per domain and over all."""
    names = list(evaluations[0].domains)
    return {
        "mean": spread([e.mean for e in evaluations]),
        "each_seed": [round(e.mean, 4) for e in evaluations],
        "domains": {n: spread([e.domains[n].accuracy for e in evaluations]) for n in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds: a check, no result")
    options = parser.parse_args()
    root = photos_root()
    office = Office(root)
    results: dict[str, object] = {}
    for name, file in (("paper", "office_caltech10_paper"), ("recommended", "office_caltech10")):
        config = read_config(ROOT / "configs" / f"{file}.toml", (), {"data.root": str(root)})
        evaluations = []
        for seed in SEEDS:
            train = dataclasses.replace(config.train, seed=seed, evaluate_every=1000)
            if options.quick:
                train = dataclasses.replace(train, rounds=3)
            settings = dataclasses.replace(config, train=train)
            evaluations.append(office.run(settings, office.domains(seed)))
        results[name] = {"config": f"configs/{file}.toml", **summarise(evaluations)}
        print(f"test, {name}: {results[name]}", flush=True)
    pooled = {
        name: spread([pooled_accuracy(office.domains(seed), fit) for seed in SEEDS])
        for name, fit in pooled_fits(office.backbone).items()
    }
    report = {
        "model": "lite",
        "seeds": list(SEEDS),
        "fedapt": results,
        "zero_shot": {
            "mean": spread([e.zero_shot_mean for e in evaluations]),
            "domains": {
                n: spread([e.domains[n].zero_shot for e in evaluations])
                for n in office.folders.domains
            },
        },
        "pooled_features": pooled,
    }
    publish("office_caltech10", report, keep=not options.quick)


if __name__ == "__main__":
    main()
