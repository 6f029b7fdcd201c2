"""One node of eight sends poisoned updates: what becomes of the accuracy, by attack and aggregate.

    python benchmarks/poisoned.py

Office-Caltech10, `lite`, two nodes a domain, 10 rounds, settings of configs/office_caltech10.toml.
Messages are serialised and replies checked as in a deployment; nodes answer in this process.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from figures import publish
from flwr.app import Array, ArrayRecord, Message
from photos import ROOT, photos_root

from fedapt.core.config import read_config, remove_paths
from fedapt.core.report import Reporter
from fedapt.data.domains import load_domains
from fedapt.data.folders import scan_folders
from fedapt.data.splits import split_as_configured
from fedapt.federation.flower.client_app import build_client_app
from fedapt.federation.flower.engine import FlowerEngine
from fedapt.federation.flower.node import Node, Party
from fedapt.federation.flower.task import Plan
from fedapt.federation.flower.watch import Watch
from fedapt.model.backbone import load_backbone
from fedapt.model.image_encoder import image_encoder
from fedapt.run.session import Session

sys.path.insert(0, str(ROOT / "tests"))

from support.grid import DirectGrid

ATTACKER, ROUNDS = 3, 10
# what is refused before any aggregate is tried with the mean alone
CELLS = (
    *(("mean", attack) for attack in ("none", "x 1000", "NaN", "sign flipped")),
    *((name, a) for name in ("median", "trimmed-mean", "krum") for a in ("none", "sign flipped")),
)


def poison(attack: str, reply: Message, sent: Message) -> Message:
    """The reply of a hostile node."""
    before = sent.content.array_records["learned"]
    arrays = {}
    for name, array in reply.content.array_records["learned"].items():
        start = before[name].numpy()
        update = array.numpy() - start
        if attack == "x 1000":
            update = 1000 * update
        elif attack == "sign flipped":
            update = -10 * update  # long enough to undo what the seven others do
        else:
            update = np.full_like(update, np.nan)
        arrays[name] = Array(start + update)
    reply.content["learned"] = ArrayRecord(arrays)
    return reply


def train(root: Path, attack: str, aggregation: str) -> dict[str, object]:
    settings = ("federation.clients_per_domain=2", "federation.alpha=100.0")
    more = (f"train.rounds={ROUNDS}", f"federation.aggregation={aggregation}")
    config = read_config(
        ROOT / "configs" / "office_caltech10.toml", [*settings, *more], {"data.root": str(root)}
    )
    backbone = load_backbone("lite")
    folders = scan_folders(root, config.data.class_names)
    domains = load_domains(
        folders, split_as_configured(folders, config.data), image_encoder(backbone), Reporter()
    )
    session = Session(config, backbone, folders, domains)
    nodes = [Node(Party(root, name)) for name in session.trained]
    setting = session.method.setting
    app = build_client_app(lambda task, context: nodes[int(str(task["domain"]))])
    grid = DirectGrid({client.index: app for client in setting.clients})
    if attack != "none":
        grid.change = lambda node, reply: (
            poison(attack, reply, grid.messages[-1]) if node == ATTACKER else reply
        )
    plan = Plan(remove_paths(config), setting.class_names, backbone.sha256, setting.n_keys)
    session.engine = FlowerEngine(
        session.method, plan, grid, lambda c: {x.index: x.index for x in c}, Watch(Reporter())
    )
    done = session.run(session.begin(), lambda progress: None, Reporter())
    refused = sum(bool(record.get("refused")) for record in done.records)
    return {"accuracy": done.records[-1]["mean_accuracy"], "rounds_refused": refused}


def main() -> None:
    root = photos_root()
    results = {}
    for aggregation, attack in CELLS:
        results[f"{aggregation}, {attack}"] = train(root, attack, aggregation)
        print(aggregation, attack, results[f"{aggregation}, {attack}"], flush=True)
    publish("poisoned", {"results": results})


if __name__ == "__main__":
    main()
