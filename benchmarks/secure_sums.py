"""The closed form with secure aggregation and with noise of the nodes, on Office-Caltech10.

    python benchmarks/secure_sums.py [--quick]

`lite`, four clients, each a node of Flower's simulation, one round. A node adds normal noise of
standard deviation z x CLIP to each value of its sums. Two epsilons follow, with delta 1e-5 and
honest nodes, for what the server sees: the sum of all four with secure aggregation, each node's own
sums without. The epsilon of a client hides all its images together. The epsilon of an image hides
one image, which moves the sums by

    |[x x', x y']| <= sqrt(|x|^4 + |x|^2 |y|^2) / UNIT,   |x|^2 = 1 + CONSTANT^2,  |y|^2 = C

at most, and clipping does not increase it.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path

from figures import is_quick, publish
from photos import photos_root

from fedapt.core.config import read_config
from fedapt.core.records import read_records
from fedapt.core.report import Reporter
from fedapt.model.ridge import CONSTANT, UNIT
from fedapt.run.train import train
from fedapt.training.privacy import find_epsilon

SEEDS, N_CLASSES, N_NODES, DELTA = (0, 1), 10, 4, 1e-5
CLIP = 1.25  # the largest client's sums have length 1.1: nothing is cut off
NOISE = (8e-5, 8e-4, 2.4e-3)
SECURE = "federation.secure=true"
CELLS: dict[str, tuple[str, bool, float]] = {
    "analytic": ("analytic", False, 0.0),
    "analytic, secure": ("analytic", True, 0.0),
    **{f"analytic, secure, z {z:g}": ("analytic", True, z) for z in NOISE},
    "adaptive-analytic": ("adaptive-analytic", False, 0.0),
    **{f"adaptive-analytic, z {z:g}": ("adaptive-analytic", False, z) for z in NOISE},
}


def image_length() -> float:
    """How far one image moves a client's sums at most."""
    squared = 1 + CONSTANT**2
    return math.sqrt(squared**2 + squared * N_CLASSES) / UNIT


def main() -> None:
    quick = is_quick(__doc__ or "")
    rows = []
    for name, (method, is_secure, noise) in CELLS.items():
        options = [f"train.method={method}", f"federation.delta={DELTA}"]
        options += [SECURE] if is_secure else []
        if noise:
            options += [f"federation.node_clip={CLIP}", f"federation.node_noise={noise}"]
        accuracy, seconds = [], []
        for seed in SEEDS[:1] if quick else SEEDS:
            values = {
                "data.root": str(photos_root()),
                "data.split_seed": seed,
                "train.seed": seed,
            }
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                config = read_config(None, options, values)
                train(config, out, resume=False, device="cpu", reporter=Reporter(), engine="flower")
                (record,) = read_records(out / "records.jsonl")
            accuracy.append(100 * record["mean_accuracy"])
            seconds.append(record["seconds"])
        seen = noise * (math.sqrt(N_NODES) if is_secure else 1.0)
        image = find_epsilon([seen * CLIP / image_length()], DELTA) if noise else None
        client = find_epsilon([seen], DELTA) if noise else None
        row = {
            "cell": name,
            "accuracy": round(statistics.mean(accuracy), 1),
            "each_seed": [round(value, 1) for value in accuracy],
            "epsilon_image": None if image is None else round(image, 1),
            "epsilon_client": None if client is None else round(client),
            "seconds": round(statistics.median(seconds), 1),
        }
        rows.append(row)
        print(row, flush=True)
    publish("secure_sums", {"seeds": list(SEEDS), "rows": rows}, keep=not quick)


if __name__ == "__main__":
    main()
