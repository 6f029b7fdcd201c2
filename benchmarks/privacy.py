"""What differential privacy costs on Office-Caltech10: accuracy and epsilon by clip and noise.

    python benchmarks/privacy.py [--quick]

`lite`, four clients, 10 rounds, the central mechanism: every update scaled to length C at most, and
N(0, (z C / n)^2) on their mean. Epsilon is for one of the four clients' updates or zero in its
place, delta 1e-5.
"""

from __future__ import annotations

import statistics

from figures import is_quick, publish
from photos import photos_root

from fedapt.core.config import read_config
from fedapt.core.report import Reporter
from fedapt.data.domains import load_domains
from fedapt.data.folders import scan_folders
from fedapt.data.splits import split_as_configured
from fedapt.model.backbone import load_backbone
from fedapt.onnx.image_encoder import image_encoder
from fedapt.run.session import Session

ROUNDS, SEEDS = 10, 2
# the fewer values are sent, the less noise they get together
SMALL = ("prompt.class_specific=false", "prompt.context_length=4", "train.lr=0.1")
CELLS = ((0.0, 0.0), (1.0, 0.0), (1.0, 0.01), (1.0, 0.1), (1.0, 1.0), (1.0, 4.0))


def main() -> None:
    quick = is_quick(__doc__ or "")
    root, rounds = photos_root(), 3 if quick else ROUNDS
    folders, backbone = scan_folders(root), load_backbone("lite")
    rows = []
    for clip, noise in CELLS:
        found, epsilon = [], 0.0
        for seed in range(SEEDS):
            more = (f"federation.clip={clip}", f"federation.noise={noise}", f"train.seed={seed}")
            config = read_config(None, [*SMALL, *more, f"train.rounds={rounds}"])
            split = split_as_configured(folders, config.data)
            domains = load_domains(folders, split, image_encoder(backbone), Reporter())
            session = Session(config, backbone, folders, domains)
            done = session.run(session.begin(), lambda progress: None, Reporter())
            found.append(100 * done.records[-1]["mean_accuracy"])
            epsilon = done.records[-1].get("epsilon", 0.0)
        row = {
            "clip": clip,
            "noise": noise,
            "epsilon": round(epsilon, 1),
            "accuracy": round(statistics.mean(found), 1),
            "spread": round(statistics.stdev(found), 1),
        }
        rows.append(row)
        print(row, flush=True)
    publish("privacy", {"rows": rows}, keep=not quick)


if __name__ == "__main__":
    main()
