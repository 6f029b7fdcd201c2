"""A domain that joins a trained federation: what it gains, and what the others lose.

    python benchmarks/joining.py [--quick]

`lite` on Office-Caltech10, the recommended settings, products in bfloat16. Each domain in turn is
left out, the others train, then it joins them with a key of its own and all go on for a few rounds
at the same rate. Beside it: all four from the start, as many rounds as the others had alone.
"""

from __future__ import annotations

from itertools import product
from statistics import fmean

from figures import is_quick, publish
from office import in_processes, open_session, run, spread

DOMAINS = ("amazon", "caltech", "dslr", "webcam")
SEEDS = tuple(range(5))
ROUNDS, EVERY = 20, 5
FILE = "office_caltech10"
Accuracy = dict[str, float]


def join(cell: tuple[int, str, tuple[str, ...]]) -> dict[int, Accuracy]:
    """Test accuracy of each domain, rounds after `newcomer` has joined; 0 is before."""
    seed, newcomer, overrides = cell
    left_out = (f"data.leave_out={newcomer}", *overrides)
    alone = open_session(FILE, left_out, seed, evaluate_every=1000)
    others = run(alone)
    session = open_session(
        FILE,
        (f"train.rounds={ROUNDS}",),
        seed,
        evaluate_every=EVERY,
        joined=alone.to_checkpoint(others),
    )
    after = run(session).records
    return {
        0: others.records[-1]["accuracy"],
        **{r["round"]: r["accuracy"] for r in after if "accuracy" in r},
    }


def train_together(cell: tuple[int, tuple[str, ...]]) -> Accuracy:
    """Test accuracy of each domain, where all train from the start."""
    seed, overrides = cell
    done = run(open_session(FILE, overrides, seed, evaluate_every=1000))
    found: Accuracy = done.records[-1]["accuracy"]
    return found


def main() -> None:
    quick = is_quick(__doc__)
    seeds = SEEDS[:2] if quick else SEEDS
    overrides = ("train.rounds=3",) if quick else ()
    together = dict(
        zip(seeds, in_processes(train_together, [(s, overrides) for s in seeds]), strict=True)
    )
    cells = list(product(seeds, DOMAINS))
    joined = dict(
        zip(cells, in_processes(join, [(*cell, overrides) for cell in cells]), strict=True)
    )
    rounds = list(joined[cells[0]])
    report = {
        "model": "lite",
        "config": f"configs/{FILE}.toml",
        "precision": "bfloat16",
        "seeds": list(seeds),
        "newcomer_after_rounds": {
            n: spread([fmean(joined[s, d][n][d] for d in DOMAINS) for s in seeds]) for n in rounds
        },
        "newcomer_from_the_start": spread([fmean(together[s].values()) for s in seeds]),
        "others_after_rounds": {
            n: spread(
                [
                    fmean(joined[s, d][n][o] for d in DOMAINS for o in DOMAINS if o != d)
                    for s in seeds
                ]
            )
            for n in rounds
        },
        "each_newcomer": {
            d: {n: fmean(joined[s, d][n][d] for s in seeds) for n in rounds} for d in DOMAINS
        },
    }
    publish("joining", report, keep=not quick)


if __name__ == "__main__":
    main()
