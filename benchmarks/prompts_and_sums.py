"""Prompts and the closed form together: is the pair better than `adaptive-analytic` alone?

    python benchmarks/prompts_and_sums.py BUNDLE... [--quick]

FedAPT trains 50 rounds at its default settings on four fifths of each client's training images;
the round is chosen on validation images of the domains that train. The same images give the sums.
Two ways to use both, beside each alone:

- `prompts as prior`: the ridge solutions are pulled to FedAPT's text banks, in place of the text
  vectors of "a photo of a {name}."; W_0 to the mean of the banks, W_d to its own domain's.
- `mean probability`: the mean of both models' probabilities.

In-domain accuracy is of validation images; that of a domain that is left out is of its validation
images, which have chosen nothing. Splits that no comparison uses, means over them in %; `lead` is
the paired difference to `adaptive-analytic`. A BUNDLE is a folder's features
(benchmarks/bundles.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean

import torch
from closed_form import Constants, mix
from figures import publish
from office import in_processes, spread
from torch import Tensor
from torch.nn.functional import normalize

from fedapt.comparison.bench import open_images
from fedapt.core.config import read_config
from fedapt.core.report import Reporter
from fedapt.data.domains import Domain
from fedapt.model.backbone import load_backbone
from fedapt.model.head import Head
from fedapt.model.prompted_clip import zero_shot_features
from fedapt.model.ridge import extend, solve, solve_router, sum_images
from fedapt.run.session import Session
from fedapt.training.loop import Progress
from fedapt.training.methods.analytic import (
    DOMAIN_PENALTY,
    LOGIT_SCALE,
    PENALTY,
    PRIOR,
    ROUTER_PENALTY,
)
from fedapt.training.methods.fedapt import build_global_model

SEEDS = (10, 11, 12)  # comparisons use 0 to 4
ALONE, FEDAPT = "adaptive-analytic", "fedapt"
Cell = tuple[str, int, str, int]  # bundle, seed, left-out domain or nothing, rounds


def train(session: Session) -> Head:
    """FedAPT's head of the best round on validation images."""
    best = session.begin()

    def keep(progress: Progress) -> None:
        nonlocal best
        best = progress if progress.is_best else best

    session.run(best, keep, Reporter())
    return build_global_model(session.method.setting, best.learned).head


class ClosedForm:
    """The head of `adaptive-analytic`, with a prior of its own for each bank."""

    def __init__(self, trained: list[Domain], pooled: Tensor, domains: list[Tensor | None]) -> None:
        """`pooled` is P of W_0 [C, D]; `domains` has that of each W_d, or None to pull to W_0."""
        n_classes = len(pooled)
        loaded = [domain.train.load() for domain in trained]
        sums = [sum_images(x.features, x.labels, n_classes) for x in loaded]
        total = sums[0]
        for part in sums[1:]:
            total = total + part
        mean = solve(total, PENALTY, as_prior(pooled))
        own = [
            solve(part, DOMAIN_PENALTY, mean if prior is None else as_prior(prior))
            for part, prior in zip(sums, domains, strict=True)
        ]
        self._banks = [*own, mean]
        self._router = solve_router(sums, ROUTER_PENALTY)

    def logits(self, features: Tensor) -> Tensor:
        """float64 [n, C]."""
        return LOGIT_SCALE * mix(extend(features), self._banks, self._router, Constants())


def as_prior(vectors: Tensor) -> Tensor:
    """P, float64 [D + 1, C]: class vectors [C, D] minus their mean, as the method scales them."""
    unit = normalize(vectors.double(), dim=-1)
    rows = PRIOR * (unit - unit.mean(0)).T
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])


def run(cell: Cell) -> tuple[Cell, dict[str, float]]:
    """Accuracy of each variant."""
    torch.set_num_threads(1)
    data, seed, fold, rounds = cell
    values = {
        "data.root": data,
        "data.leave_out": fold,
        "data.split_seed": seed,
        "data.validation_fraction": 0.2,
        "train.seed": seed,
        "train.rounds": rounds,
        "train.evaluate_every": 10,
    }
    config = read_config(None, (), values)
    backbone = load_backbone("lite", "", "cpu")
    images, table = open_images(config, backbone, Reporter())
    images = images.split_again(config.data)
    domains = images.divide(table)
    session = Session(config, backbone, images.folders, domains)
    head = train(session)
    text = zero_shot_features(backbone, images.classes)
    trained = [domain for domain in domains if domain.name in session.trained]
    trained.sort(key=lambda domain: session.trained.index(domain.name))
    alone = ClosedForm(trained, text, [None] * len(trained))
    taught = ClosedForm(trained, head.banks.mean(0), list(head.banks))
    found: dict[str, list[float]] = {}
    for domain in domains:
        if fold and domain.name != fold:
            continue
        part = domain.validation.load()
        prompts, sums = head.logits(part.features).double(), alone.logits(part.features)
        for name, scores in {
            FEDAPT: prompts,
            ALONE: sums,
            "prompts as prior": taught.logits(part.features),
            "mean probability": prompts.softmax(-1) + sums.softmax(-1),
        }.items():
            share = (scores.argmax(-1) == part.labels).double().mean()
            found.setdefault(name, []).append(float(share))
    return cell, {name: fmean(shares) for name, shares in found.items()}


def main() -> None:
    quick = "--quick" in sys.argv
    bundles = [Path(text).resolve() for text in sys.argv[1:] if text != "--quick"]
    if not bundles:
        sys.exit(__doc__)
    seeds, rounds = (SEEDS[:2], 1) if quick else (SEEDS, 50)
    cells: list[Cell] = []
    for path in bundles:
        config = read_config(None, (), {"data.root": str(path)})
        images, _ = open_images(config, load_backbone("lite", "", "cpu"), Reporter())
        folds = ("", *images.domains)
        cells += [(str(path), seed, fold, rounds) for seed in seeds for fold in folds]
    # data set -> protocol -> variant -> seed -> accuracy of each left-out domain, or of all
    found: dict[str, dict[str, dict[str, dict[int, list[float]]]]] = {}
    for (data, seed, fold, _), shares in in_processes(run, cells):
        print(Path(data).stem, seed, fold or "in-domain", shares, flush=True)
        protocols = found.setdefault(Path(data).stem, {})
        for name, share in shares.items():
            rows = protocols.setdefault("left-out" if fold else "in-domain", {})
            rows.setdefault(name, {}).setdefault(seed, []).append(100 * share)
    report: dict[str, object] = {
        data: {protocol: summarise(rows) for protocol, rows in protocols.items()}
        for data, protocols in found.items()
    }
    report |= {"model": "lite", "seeds": list(seeds)}
    publish("prompts_and_sums", report, keep=not quick)


def summarise(rows: dict[str, dict[int, list[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Spread over the seeds of each variant's accuracy and lead."""
    means = {name: [fmean(shares) for shares in seeds.values()] for name, seeds in rows.items()}
    return {
        name: {
            "accuracy": spread(values),
            "lead": spread([a - b for a, b in zip(values, means[ALONE], strict=True)]),
        }
        for name, values in means.items()
    }


if __name__ == "__main__":
    main()
