"""The constants of `adaptive-analytic`, on validation images, in-domain and with a domain left out.

    python benchmarks/closed_form.py BUNDLE...

Each constant is varied alone around the values of fedapt/training/methods/analytic.py, with the
methods' own solvers. Five splits that no comparison uses; a fifth of the training images is for
validation, and test images play no part. A domain that is left out is measured on its validation
images. Means over the splits, in %; `lead` is the paired difference to the pooled solution with
the same penalty and prior. A BUNDLE is a folder's features (benchmarks/bundles.py).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import torch
from figures import publish
from office import spread
from torch import Tensor

from fedapt.comparison.bench import open_images
from fedapt.core.config import read_config
from fedapt.core.report import Reporter
from fedapt.model.backbone import load_backbone
from fedapt.model.prompted_clip import zero_shot_features
from fedapt.model.ridge import Sums, extend, solve, solve_router, sum_images
from fedapt.training.methods import analytic

SEEDS = (10, 11, 12, 13, 14)  # comparisons use 0 to 4


@dataclasses.dataclass(frozen=True)
class Constants:
    """See `fedapt.model.ridge` and the method's docstring."""

    penalty: float = analytic.PENALTY
    prior: float = analytic.PRIOR
    domain_penalty: float = analytic.DOMAIN_PENALTY
    router_penalty: float = analytic.ROUTER_PENALTY
    temperature: float = analytic.TEMPERATURE
    pooled_score: float = analytic.POOLED_SCORE


VARIED: dict[str, tuple[float, ...]] = {
    "penalty": (0.5, 1.0, 2.0, 4.0, 8.0),
    "prior": (0.0, 1.0, 3.0, 10.0),
    "domain_penalty": (0.1, 0.3, 0.5, 1.0, 2.0, 5.0),
    "router_penalty": (0.1, 0.3, 1.0),
    "temperature": (0.02, 0.05, 0.1, 0.2, 0.5),
    "pooled_score": (0.2, 0.4, 0.6, 0.8, 1.0, 1.2),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One domain of one split: its training sums, and x and labels of its validation images."""

    sums: Sums
    x: Tensor
    labels: Tensor

    def accuracy(self, scores: Tensor) -> float:
        """Share of validation images whose own class has the highest score [n, C]."""
        return float((scores.argmax(-1) == self.labels).double().mean())


def solve_pooled(trained: Sequence[Part], text: Tensor, constants: Constants) -> Tensor:
    total = trained[0].sums
    for part in trained[1:]:
        total = total + part.sums
    pull = torch.zeros_like(total.targets)
    pull[:-1] = constants.prior * (text - text.mean(0)).T
    return solve(total, constants.penalty, pull)


def mix(x: Tensor, banks: Sequence[Tensor], router: Tensor, constants: Constants) -> Tensor:
    """Scores of `adaptive-analytic` before its scale, float64 [n, C]; the last bank is W_0."""
    scores = x @ router
    scores = torch.cat([scores, scores.new_full((len(scores), 1), constants.pooled_score)], 1)
    weights = (scores / constants.temperature).softmax(-1)
    return torch.einsum("nk,nkc->nc", weights, torch.stack([x @ bank for bank in banks], dim=1))


def measure(
    trained: Sequence[Part], tested: Sequence[Part], text: Tensor, constants: Constants
) -> tuple[float, float]:
    """Mean accuracy of the pooled and of the adaptive solution."""
    pooled = solve_pooled(trained, text, constants)
    domains = [solve(part.sums, constants.domain_penalty, pooled) for part in trained]
    router = solve_router([part.sums for part in trained], constants.router_penalty)
    found = []
    for part in tested:
        mixed = mix(part.x, [*domains, pooled], router, constants)
        found.append((part.accuracy(part.x @ pooled), part.accuracy(mixed)))
    return fmean(p for p, _ in found), fmean(a for _, a in found)


def splits(data: str) -> Iterator[tuple[list[Part], Tensor]]:
    """The domains of each split, and the text encoder's class vectors, float64 [C, D]."""
    backbone = load_backbone("lite", "", "cpu")
    images, table = open_images(read_config(None, (), {"data.root": data}), backbone, Reporter())
    text = zero_shot_features(backbone, images.classes).double()
    for seed in SEEDS:
        values = {"data.split_seed": seed, "data.validation_fraction": 0.2}
        parts = []
        for domain in images.split_again(read_config(None, (), values).data).divide(table):
            train, validation = domain.train.load(), domain.validation.load()
            sums = sum_images(train.features, train.labels, len(images.classes))
            parts.append(Part(sums, extend(validation.features), validation.labels))
        yield parts, text


def variants() -> Iterator[tuple[str, Constants]]:
    """The chosen constants, then each of them changed alone."""
    yield "chosen", Constants()
    for name, values in VARIED.items():
        for value in values:
            if value != getattr(Constants(), name):
                yield f"{name} {value:g}", dataclasses.replace(Constants(), **{name: value})


def sweep(data: str) -> dict[str, object]:
    """Every variant on one bundle."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for parts, text in splits(data):
        for name, constants in variants():
            row = found.setdefault(name, {"in-domain": [], "left-out": []})
            row["in-domain"].append(measure(parts, parts, text, constants))
            out = [
                measure([p for p in parts if p is not left], [left], text, constants)
                for left in parts
            ]
            row["left-out"].append((fmean(p for p, _ in out), fmean(a for _, a in out)))
    return {name: {p: summarise(pairs) for p, pairs in row.items()} for name, row in found.items()}


def summarise(pairs: list[tuple[float, float]]) -> dict[str, dict[str, float]]:
    """Over the splits, in %."""
    columns = {
        "analytic": [100 * p for p, _ in pairs],
        "adaptive-analytic": [100 * a for _, a in pairs],
        "lead": [100 * (a - p) for p, a in pairs],
    }
    return {
        name: {k: round(v, 2) for k, v in spread(values).items()}
        for name, values in columns.items()
    }


def main() -> None:
    torch.set_num_threads(1)
    bundles = [Path(text).resolve() for text in sys.argv[1:]]
    if not bundles:
        sys.exit(__doc__)
    found = {path.stem: sweep(str(path)) for path in bundles}
    publish("closed_form", {"model": "lite", "seeds": list(SEEDS), "validation": found})


if __name__ == "__main__":
    main()
