"""1 000 clients, 20 a round, in Flower's simulation: seconds per round, memory that does not grow.

    python benchmarks/many_simulated.py

Four domains of 600 drawn images, dealt out to 250 clients each; `lite` and the paper's settings.
Memory is that of this process and all that it has started, Ray's included; pages that several
processes share count once for each.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from figures import publish
from PIL import Image

from fedapt.core.config import read_config
from fedapt.core.report import Reporter
from fedapt.run.train import train

DOMAINS, CLASSES, IMAGES, ROUNDS = 4, 10, 60, 20
SETTINGS = (
    f"train.rounds={ROUNDS}",
    "train.evaluate_every=20",
    "federation.clients_per_domain=250",
    "federation.min_images=1",
    "federation.alpha=100.0",
    "federation.sampled=20",
)


class Memory(Reporter):
    """Resident bytes of this process and its descendants after each round."""

    def __init__(self) -> None:
        self.rounds: dict[int, int] = {}

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        """Look after each round."""
        if task == "rounds":
            self.rounds[done] = resident_bytes(os.getpid())


def resident_bytes(root: int) -> int:
    children: dict[int, list[int]] = defaultdict(list)
    resident: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            resident[int(entry.name)] = int((entry / "statm").read_text().split()[1])
        except OSError:
            continue
        children[int(fields[1])].append(int(entry.name))
    waiting, total = [root], 0
    while waiting:
        process = waiting.pop()
        total += resident.get(process, 0)
        waiting += children[process]
    return total * os.sysconf("SC_PAGE_SIZE")


def draw_images(root: Path) -> None:
    """Coloured noise: a class is a colour, a domain a brightness."""
    rng = np.random.default_rng(0)
    colours = rng.integers(60, 200, (CLASSES, 3))
    for d in range(DOMAINS):
        for c in range(CLASSES):
            folder = root / f"domain{d}" / f"class {c}"
            folder.mkdir(parents=True)
            for i in range(IMAGES):
                noise = rng.integers(-40, 41, (64, 64, 3))
                pixels = (colours[c] + 12 * d + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


def main() -> None:
    memory = Memory()
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "images", Path(folder) / "run"
        draw_images(root)
        config = read_config(None, SETTINGS, {"data.root": str(root)})
        train(config, out, resume=False, device="cpu", reporter=memory, engine="flower")
        records = [json.loads(line) for line in (out / "records.jsonl").open()]
    seconds = [record["seconds"] for record in records[5:]]  # by then each domain has been read
    report = {
        "clients": DOMAINS * 250,
        "clients_per_round": 20,
        "rounds": ROUNDS,
        "replies": sum(record["replies"] for record in records),
        "seconds_per_round": round(sum(seconds) / len(seconds), 2),
        "resident_mb": {n: round(memory.rounds[n] / 1e6) for n in (5, 10, 15, 20)},
        "bytes_per_round": records[-1]["bytes_sent"],
    }
    publish("many_simulated", report)


if __name__ == "__main__":
    main()
