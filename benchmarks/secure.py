"""Secure aggregation and noise of the nodes on Office-Caltech10: accuracy, time and bytes.

    python benchmarks/secure.py [--quick]

`lite`, four clients, 10 rounds, each client a node of Flower's simulation. The settings and, with
noise, the epsilons are those of `benchmarks/privacy.py`: z of each of four nodes is half the
server's. Epsilon is of the sum of all four, all of them honest, delta 1e-5.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from figures import is_quick, publish
from photos import photos_root

from fedapt.core.config import read_config
from fedapt.core.records import read_records
from fedapt.core.report import Reporter
from fedapt.run.train import train

ROUNDS, SEEDS = 10, 2
SMALL = ("prompt.class_specific=false", "prompt.context_length=4", "train.lr=0.1")
SECURE = "federation.secure=true"
CLIP = (SECURE, "federation.node_clip=1.0", "federation.secure_range=64.0")
CELLS = {
    "plain": (),
    "secure": (SECURE,),
    "secure, clip 1": CLIP,
    **{
        f"secure, clip 1, z {z:g}": (*CLIP, f"federation.node_noise={z}")
        for z in (0.005, 0.05, 0.5, 2.0)
    },
}


def main() -> None:
    quick = is_quick(__doc__ or "")
    rounds, rows = 3 if quick else ROUNDS, []
    for name, settings in CELLS.items():
        accuracy, seconds, sent, last = [], [], [], {}
        for seed in range(SEEDS):
            fixed = (f"train.rounds={rounds}", f"train.evaluate_every={rounds}")
            config = read_config(
                None,
                [*SMALL, *fixed, f"train.seed={seed}", *settings],
                {"data.root": str(photos_root())},
            )
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                train(config, out, resume=False, device="cpu", reporter=Reporter(), engine="flower")
                records = read_records(out / "records.jsonl")
            last = records[-1]
            accuracy.append(100 * last["mean_accuracy"])
            seconds += [record["seconds"] for record in records[1:]]  # the first loads CLIP
            sent += [record["bytes_sent"] for record in records]
        row = {
            "cell": name,
            "accuracy": round(statistics.mean(accuracy), 2),
            "spread": round(statistics.stdev(accuracy), 2),
            "epsilon": round(last.get("epsilon", 0.0), 1),
            "seconds_a_round": round(statistics.median(seconds), 2),
            "bytes_a_round": round(statistics.mean(sent)),
        }
        rows.append(row)
        print(row, flush=True)
    publish("secure", {"rows": rows}, keep=not quick)


if __name__ == "__main__":
    main()
