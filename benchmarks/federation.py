"""A real deployment on loopback against the local engine: overhead per round, and a node that dies.

    python benchmarks/federation.py

Office-Caltech10, `lite`, four nodes, 10 rounds: SuperLink and SuperNodes are own processes,
with TLS and node keys. One node is killed with -9 when round 2 is over, and started again at once.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from figures import publish
from photos import ROOT, photos_root

from fedapt.core.config import read_config
from fedapt.core.records import Record, read_records
from fedapt.core.report import Reporter
from fedapt.data.folders import scan_folders
from fedapt.run.train import train

sys.path.insert(0, str(ROOT / "tests"))

from support.federation import deploy

ROUNDS, NODES = 10, ("amazon", "caltech", "dslr", "webcam")
SETTINGS = (f"train.rounds={ROUNDS}", "federation.round_seconds=20.0")


def train_deployed(folder: Path, root: Path, victim: str) -> list[Record]:
    classes = scan_folders(root).class_names
    with deploy(folder, NODES, classes, root, None, *SETTINGS) as deployment:
        deployment.start_server()
        for name in NODES:
            deployment.start_node(name)
        deployment.start_training()
        if victim:
            deployment.wait_for_round(2)
            deployment.kill(victim)
            deployment.start_node(victim)
        if deployment.wait_for_end("train", 900.0):
            sys.exit(deployment.say("train"))
        return read_records(deployment.run / "records.jsonl")


def main() -> None:
    root = photos_root()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        train(
            read_config(None, SETTINGS, {"data.root": str(root)}),
            out / "local",
            resume=False,
            device="cpu",
            reporter=Reporter(),
        )
        local = read_records(out / "local" / "records.jsonl")
        whole = train_deployed(out / "whole", root, "")
        broken = train_deployed(out / "broken", root, "webcam")
        same = (out / "local" / "checkpoint.safetensors").read_bytes() == (
            out / "whole" / "server" / "run" / "checkpoint.safetensors"
        ).read_bytes()
    # the first round has what a process does once
    seconds = {
        name: round(statistics.median(r["seconds"] for r in records[1:]), 2)
        for name, records in (("local", local), ("deployment", whole))
    }
    report = {
        "seconds_per_round": seconds,
        "overhead_seconds": round(seconds["deployment"] - seconds["local"], 2),
        "bytes_per_round": whole[-1]["bytes_sent"],
        "bytes_of_tensors": local[-1]["bytes_sent"],
        "same_checkpoint": same,
        "accuracy": {
            "local": local[-1]["mean_accuracy"],
            "deployment": whole[-1]["mean_accuracy"],
            "one node killed": broken[-1]["mean_accuracy"],
        },
        "replies_with_one_node_killed": [r["replies"] for r in broken],
    }
    publish("federation", report)


if __name__ == "__main__":
    main()
