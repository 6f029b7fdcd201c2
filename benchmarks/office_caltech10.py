"""FedAPT with `lite` on Office-Caltech10, three seeds, beside zero-shot and a centralised probe.

    python benchmarks/office_caltech10.py [--quick]

Every seed has its own 80/20 split, keys and batches. The paper's settings are run as they are, and
once more with the learning rate that is best on validation images, a fifth of each client's
training images; test images are looked at once, at the end. Ridge regression on all clients' pooled
features, which no federation may do, shows what the frozen features allow.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from statistics import mean, stdev

import torch
from photos import RESULTS, ROOT, machine, photos_root
from torch.nn.functional import normalize, one_hot

from fedapt.core.config import Config, DataConfig, read_config
from fedapt.core.report import Reporter
from fedapt.data.domains import Domain, Labelled
from fedapt.data.folders import ImageFolders, scan_folders
from fedapt.data.splits import split_folders, split_samples
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.image_encoder import image_encoder
from fedapt.model.prompted_clip import zero_shot_features
from fedapt.run.session import Session
from fedapt.train.evaluate import Evaluation, accuracy, evaluate
from fedapt.train.loop import run_rounds

SEEDS = (0, 1, 2)
RATES = (0.01, 0.03, 0.1, 0.3)
VALIDATION_FRACTION = 0.2


class Office:
    """The photos with their features, split anew for each seed."""

    def __init__(self, root: Path) -> None:
        config = read_config(ROOT / "configs" / "office_caltech10.toml")
        self.config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, root=str(root))
        )
        self.backbone: Backbone = load_backbone(config.model.name)
        self.folders: ImageFolders = scan_folders(root, config.data.class_names)
        self.zero_shot = zero_shot_features(self.backbone, self.folders.class_names)
        self.rows = self._features()

    def _features(self) -> dict[str, torch.Tensor]:
        from fedapt.data.features import extract_features

        samples = [s for d in self.folders.domains for s in self.folders.samples[d]]
        paths = [self.folders.root / s.path for s in samples]
        features = extract_features(paths, image_encoder(self.backbone))
        if features.errors:
            raise SystemExit(f"unreadable photos: {[str(e) for e in features.errors]}")
        values = torch.from_numpy(features.values)
        return {sample.path: value for sample, value in zip(samples, values, strict=True)}

    def _labelled(self, samples) -> Labelled:  # type: ignore[no-untyped-def]
        return Labelled(
            torch.stack([self.rows[s.path] for s in samples]),
            torch.tensor([s.label for s in samples]),
        )

    def domains(self, seed: int, validation: bool) -> list[Domain]:
        """Training and test images of a seed; for validation, the training images split again."""
        split = split_folders(self.folders, DataConfig.test_fraction, seed)
        domains = []
        for name in self.folders.domains:
            train, test = split.train[name], split.test[name]
            if validation:
                train, test = split_samples(train, VALIDATION_FRACTION, seed + 1000)
            domains.append(Domain(name, self._labelled(train), self._labelled(test)))
        return domains

    def run(self, config: Config, domains: list[Domain]) -> tuple[Evaluation, float]:
        """Train and evaluate; also the seconds per round."""
        session = Session(config, self.backbone, self.folders, domains)
        started = time.monotonic()
        done = run_rounds(
            session.engine, session.begin(), config.train, lambda _: {}, lambda _: None, Reporter()
        )
        seconds = (time.monotonic() - started) / config.train.rounds
        model = session.global_model(done.learned)
        return evaluate(model, domains, self.folders.domains, self.zero_shot), seconds

    def with_settings(self, seed: int, rate: float, rounds: int) -> Config:
        """The paper's settings but for seed, learning rate and rounds."""
        train = dataclasses.replace(self.config.train, seed=seed, lr=rate, rounds=rounds)
        data = dataclasses.replace(self.config.data, split_seed=seed)
        return dataclasses.replace(self.config, train=train, data=data)


def ridge_accuracy(domains: list[Domain]) -> float:
    """Mean test accuracy of ridge regression on all clients' unit features together."""
    x = torch.cat([normalize(d.train.features, dim=-1) for d in domains]).double()
    y = torch.cat([d.train.labels for d in domains])
    targets = 2 * one_hot(y).double() - 1
    centre = x.mean(0)
    x = x - centre
    gram = x.T @ x + 1.0 * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x.T @ (targets - targets.mean(0)))
    shares = []
    for domain in domains:
        z = normalize(domain.test.features, dim=-1).double() - centre
        shares.append(accuracy(z @ weights + targets.mean(0), domain.test.labels))
    return mean(shares)


def spread(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation."""
    return {"mean": mean(values), "std": stdev(values)}


def summarise(evaluations: list[Evaluation]) -> dict[str, object]:
    """Mean and spread over the seeds, per domain and over all."""
    names = list(evaluations[0].domains)
    return {
        "mean": spread([e.mean for e in evaluations]),
        "domains": {n: spread([e.domains[n].accuracy for e in evaluations]) for n in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds: a check, no result")
    parser.add_argument("--out", type=Path, default=RESULTS / "office_caltech10.json")
    options = parser.parse_args()
    office = Office(photos_root())
    rounds = 3 if options.quick else office.config.train.rounds

    validation = {}
    for rate in RATES:
        scores = [
            office.run(office.with_settings(seed, rate, rounds), office.domains(seed, True))[0].mean
            for seed in SEEDS
        ]
        validation[rate] = mean(scores)
        print(f"validation, lr {rate}: {100 * validation[rate]:.2f} %", flush=True)
    best = max(validation, key=lambda rate: validation[rate])

    results: dict[str, object] = {}
    seconds = []
    for name, rate in (("paper", 0.01), ("best", best)):
        evaluations = []
        for seed in SEEDS:
            evaluation, per_round = office.run(
                office.with_settings(seed, rate, rounds), office.domains(seed, False)
            )
            evaluations.append(evaluation)
            seconds.append(per_round)
        results[name] = {"lr": rate, **summarise(evaluations)}
        print(f"test, lr {rate}: {results[name]}", flush=True)
    zero_shot = {
        "mean": spread([e.zero_shot_mean for e in evaluations]),
        "domains": {
            n: spread([e.domains[n].zero_shot for e in evaluations]) for n in office.folders.domains
        },
    }
    ridge = spread([ridge_accuracy(office.domains(seed, False)) for seed in SEEDS])
    report = {
        "command": "python benchmarks/office_caltech10.py",
        "model": "lite",
        "rounds": rounds,
        "seeds": list(SEEDS),
        "fedapt": results,
        "zero_shot": zero_shot,
        "ridge_on_pooled_features": ridge,
        "validation": {str(rate): score for rate, score in validation.items()},
        "seconds_per_round": mean(seconds),
        "machine": machine(),
    }
    print(json.dumps(report, indent=2))
    if not options.quick:
        options.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
