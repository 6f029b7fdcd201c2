"""FedAPT with `lite` on Office-Caltech10, thirty seeds, beside zero-shot and pooled features.

    python benchmarks/office_caltech10.py [--quick]

Every seed has its own 80/20 split, keys and batches. Run as they stand, but with products in
bfloat16, are the paper's settings (configs/office_caltech10_paper.toml) and the recommended ones
(configs/office_caltech10.toml), which validation images chose (benchmarks/headroom.py). Classifiers
on all clients' pooled features, which no federation may do, show what the frozen features allow.
"""

from __future__ import annotations

from itertools import product

from figures import is_quick, publish
from office import in_processes, open_office, open_session, run, spread
from pooled import pooled_accuracy, pooled_fits

from fedapt.training.evaluate import Evaluation

SEEDS = tuple(range(30))
CONFIGS = {"paper": "office_caltech10_paper", "recommended": "office_caltech10"}


def train(cell: tuple[str, int, tuple[str, ...]]) -> Evaluation:
    """Train with the settings of a file under a seed, and look at the test images."""
    file, seed, overrides = cell
    session = open_session(file, overrides, seed, evaluate_every=1000)
    return session.evaluate(run(session))


def summarise(evaluations: list[Evaluation]) -> dict[str, object]:
    """Mean and spread over the seeds, per domain and over all."""
    names = list(evaluations[0].domains)
    return {
        "mean": spread([e.mean for e in evaluations]),
        "each_seed": [round(e.mean, 4) for e in evaluations],
        "domains": {n: spread([e.domains[n].accuracy for e in evaluations]) for n in names},
    }


def main() -> None:
    quick = is_quick(__doc__)
    seeds = SEEDS[:2] if quick else SEEDS
    overrides = ("train.rounds=3",) if quick else ()
    trained = in_processes(train, product(CONFIGS.values(), seeds, [overrides]))
    results: dict[str, object] = {}
    for name, file in CONFIGS.items():
        evaluations = [next(trained) for _ in seeds]
        results[name] = {"config": f"configs/{file}.toml", **summarise(evaluations)}
        print(f"test, {name}: {results[name]}", flush=True)
    office = open_office()
    pooled = {
        name: spread([pooled_accuracy(office.domains(seed), fit) for seed in seeds])
        for name, fit in pooled_fits(office.backbone).items()
    }
    report = {
        "model": "lite",
        "seeds": list(seeds),
        "precision": "bfloat16",
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
    publish("office_caltech10", report, keep=not quick)


if __name__ == "__main__":
    main()
