"""How the adaptive network should be trained: images routed to their own domain, on validation.

    python benchmarks/router.py BUNDLE... [--quick]

Q's loss does not touch the prompts, so Q is trained alone here, exactly as `fedapt` trains it:
a client sees its own domain's label only, 50 rounds of one epoch, batches of 256, the average of
the clients. Beside it the closed form of `adaptive-analytic`, a ridge regression. Five splits that
no comparison uses; test images play no part. A BUNDLE is a folder's features
(benchmarks/bundles.py).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import torch
from figures import publish
from office import spread
from torch import Tensor

from fedapt.comparison.bench import open_images
from fedapt.core.config import Config, read_config
from fedapt.core.names import ADAPTIVE_NETWORK
from fedapt.core.report import Reporter
from fedapt.core.seeds import child_seed
from fedapt.data.domains import Domain, Labelled
from fedapt.model.adaptive_network import draw_adaptive_network
from fedapt.model.backbone import load_backbone
from fedapt.model.ridge import extend, solve_router, sum_images
from fedapt.training.client import draw_batches, train_client
from fedapt.training.methods.analytic import ROUTER_PENALTY
from fedapt.training.methods.base import Learned, Objective
from fedapt.training.methods.fedapt import network_loss

RATES = (0.03, 0.3, 1.0, 3.0, 10.0)
SEEDS = (10, 11, 12, 13, 14)  # comparisons use 0 to 4


def objective_of(key: int) -> Objective:
    """CE(Q f, n) alone."""

    def loss(learned: Learned, batch: Labelled) -> Tensor:
        return network_loss(learned[ADAPTIVE_NETWORK], key, batch.features)

    return loss


def train(config: Config, domains: list[Domain]) -> Tensor:
    """Q float32 [N, D] after the rounds."""
    seed, width = config.train.seed, domains[0].train.load().features.shape[1]
    learned = {ADAPTIVE_NETWORK: draw_adaptive_network(len(domains), width, seed)}
    for number in range(config.train.rounds):
        replies = [
            train_client(
                objective_of(key),
                learned,
                draw_batches(d.train, config.train, child_seed(seed, "batches", number, key)),
                config.train,
                round_number=number,
            ).learned[ADAPTIVE_NETWORK]
            for key, d in enumerate(domains)
        ]
        learned = {ADAPTIVE_NETWORK: torch.stack(replies).mean(0)}
    return learned[ADAPTIVE_NETWORK]


def share_right(domains: list[Domain], scores: Mapping[str, Tensor]) -> float:
    """Mean over the domains of the share of validation images with the own domain's score first."""
    return fmean(
        float((scores[domain.name].argmax(-1) == key).double().mean())
        for key, domain in enumerate(domains)
    )


def measure(data: str, seeds: tuple[int, ...]) -> dict[str, object]:
    """Shares of one bundle, by the rate."""
    backbone = load_backbone("lite", "", "cpu")
    images, table = open_images(read_config(None, (), {"data.root": data}), backbone, Reporter())
    found: dict[str, list[float]] = {}
    for seed in seeds:
        values = {"data.split_seed": seed, "data.validation_fraction": 0.2, "train.seed": seed}
        config = read_config(None, (), values)
        domains = images.split_again(config.data).divide(table)
        features = {d.name: d.validation.load().features for d in domains}
        for rate in RATES:
            config = read_config(None, (f"train.router_lr={rate}",), values)
            network = train(config, domains)
            scores = {name: f @ network.T for name, f in features.items()}
            found.setdefault(f"router_lr {rate:g}", []).append(share_right(domains, scores))
        n_classes = len(images.classes)
        train_sets = [d.train.load() for d in domains]
        sums = [sum_images(x.features, x.labels, n_classes) for x in train_sets]
        solved = solve_router(sums, ROUTER_PENALTY)
        scores = {name: extend(f) @ solved for name, f in features.items()}
        found.setdefault("closed form", []).append(share_right(domains, scores))
    return {name: spread(shares) for name, shares in found.items()}


def main() -> None:
    torch.set_num_threads(1)
    quick = "--quick" in sys.argv
    bundles = [Path(text).resolve() for text in sys.argv[1:] if text != "--quick"]
    if not bundles:
        sys.exit(__doc__)
    seeds = SEEDS[:2] if quick else SEEDS
    routed = {path.stem: measure(str(path), seeds) for path in bundles}
    publish("router", {"model": "lite", "seeds": list(seeds), "routed": routed}, keep=not quick)


if __name__ == "__main__":
    main()
