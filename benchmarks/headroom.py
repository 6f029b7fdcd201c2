"""Which settings are best on validation images of Office-Caltech10, with `lite`.

    python benchmarks/headroom.py [--quick]

Each variant changes configs/office_caltech10.toml, trains on four fifths of each client's training
images of ten splits, in bfloat16, and is looked at on the last fifth: test images play no part.
Beside them stands what the same images allow where they are pooled (pooled.py), which no
federation may do: ridge regression; unit class vectors at CLIP's scale, FedAPT's own form; and the
best of these vectors that one of the text tower's two copies could give alone.
"""

from __future__ import annotations

from itertools import product

from figures import is_quick, publish
from office import in_processes, open_office, open_session, run, spread
from pooled import pooled_accuracy, pooled_fits

SEEDS = tuple(range(10))
VALIDATION = 0.2
VARIANTS: dict[str, tuple[str, ...]] = {
    "recommended, and on to round 150": ("train.rounds=150",),
    "the paper's rate and rounds": ("train.lr=0.01", "train.rounds=50"),
    "lr 0.1": ("train.lr=0.1",),
    "cosine": ("train.schedule=cosine",),
    "batch 64, lr 0.03, 25 rounds": ("train.batch_size=64", "train.lr=0.03", "train.rounds=25"),
    "M = 4": ("prompt.context_length=4",),
    'M = 16, start "a photo of a"': ("prompt.context_length=16", "prompt.start='a photo of a'"),
    "shared context": ("prompt.class_specific=false",),
    "weighting by samples": ("train.weighting=samples",),
}


def validate(cell: tuple[tuple[str, ...], int]) -> dict[int, float]:
    """Mean validation accuracy over the domains, after every tenth round, and the last."""
    overrides, seed = cell
    session = open_session(
        "office_caltech10", overrides, seed, evaluate_every=10, validation_fraction=VALIDATION
    )
    done = run(session)
    return {r["round"]: r["mean_validation"] for r in done.records if "mean_validation" in r}


def main() -> None:
    quick = is_quick(__doc__)
    seeds = SEEDS[:2] if quick else SEEDS
    variants = {
        name: (*overrides, "train.rounds=3") if quick else overrides
        for name, overrides in VARIANTS.items()
    }
    curves = in_processes(validate, product(variants.values(), seeds))
    rows = []
    for name, overrides in variants.items():
        found = [next(curves) for _ in seeds]
        curve = {n: spread([one[n] for one in found]) for n in found[0]}
        rows.append({"variant": name, "overrides": list(overrides), "validation": curve})
        print(name, {n: round(100 * at["mean"], 2) for n, at in curve.items()}, flush=True)
    office = open_office()
    splits = [office.domains(seed, VALIDATION) for seed in seeds]
    pooled = {
        name: spread([pooled_accuracy(domains, fit, "validation") for domains in splits])
        for name, fit in pooled_fits(office.backbone).items()
    }
    report = {"model": "lite", "seeds": list(seeds), "fedapt": rows, "pooled_features": pooled}
    publish("headroom", report, keep=not quick)


if __name__ == "__main__":
    main()
