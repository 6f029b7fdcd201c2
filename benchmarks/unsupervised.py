"""FedAPT without labels against zero-shot CLIP, where no label chooses anything.

    python benchmarks/unsupervised.py [--quick]

`lite` on Office-Caltech10, thirty seeds, each with a split of its own; the paper's settings and
rounds, the model of the last round, products in bfloat16. The rates are named here beforehand: the
paper's, and ten times that, as `lite`'s logits are 4.5 times flatter than those of OpenAI's CLIP
(exp(s) is 22 and not 100), so that gradients and curvature are smaller.
"""

from __future__ import annotations

from itertools import product

from figures import is_quick, publish
from office import in_processes, open_session, run, spread

from fedapt.training.evaluate import Evaluation

SEEDS = tuple(range(30))
RATES = (0.01, 0.1)


def train(cell: tuple[float, int]) -> Evaluation:
    """Train on images alone, and look at the test images once."""
    lr, seed = cell
    overrides = ("train.method=fedapt-unsupervised", f"train.lr={lr}")
    session = open_session("office_caltech10_paper", overrides, seed, evaluate_every=1000)
    return session.evaluate(run(session))


def compare(evaluations: list[Evaluation]) -> dict[str, object]:
    """Beside zero-shot CLIP on the same test images."""
    gains = [e.mean - e.zero_shot_mean for e in evaluations]
    return {
        "mean": spread([e.mean for e in evaluations]),
        "zero_shot": spread([e.zero_shot_mean for e in evaluations]),
        "gain": spread(gains),
        "seeds_above_zero_shot": sum(gain > 0 for gain in gains),
    }


def main() -> None:
    quick = is_quick(__doc__, "two seeds")
    seeds = SEEDS[:2] if quick else SEEDS
    found = in_processes(train, product(RATES, seeds))
    report = {
        "model": "lite",
        "seeds": list(seeds),
        "precision": "bfloat16",
        "by_rate": {str(lr): compare([next(found) for _ in seeds]) for lr in RATES},
    }
    publish("unsupervised", report, keep=not quick)


if __name__ == "__main__":
    main()
