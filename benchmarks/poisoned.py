"""One node of eight sends poisoned updates: what becomes of the accuracy, by attack and aggregate.

    python benchmarks/poisoned.py [--quick]

Office-Caltech10, `lite`, two nodes a domain, 10 rounds, settings of configs/office_caltech10.toml.
Messages are serialised and replies checked as in a deployment; nodes answer in this process.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from figures import is_quick, publish
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
from fedapt.onnx.image_encoder import image_encoder
from fedapt.run.session import Session

sys.path.insert(0, str(ROOT / "tests"))

from support.grid import DirectGrid

ATTACKERS, ROUNDS = (3,), 10
# what is refused before any aggregate is tried with the mean alone
CELLS = (
    *(("mean", attack) for attack in ("none", "x 1000", "NaN", "sign flipped")),
    *((name, a) for name in ("median", "trimmed-mean", "krum") for a in ("none", "sign flipped")),
)


def poison(attack: str, reply: Message, sent: Message) -> Message:
    """The reply of a hostile node."""
    before = {n: a.numpy() for n, a in sent.content.array_records["learned"].items()}
    learned = {n: a.numpy() for n, a in reply.content.array_records["learned"].items()}
    update = {name: learned[name] - before[name] for name in before}
    # ten times as long is enough to undo what the seven others do
    factor = {"x 1000": 1000.0, "NaN": np.nan, "sign flipped": -10.0}[attack]
    update = {n: (factor * u).astype(np.float32) for n, u in update.items()}
    reply.content["learned"] = ArrayRecord({n: Array(before[n] + u) for n, u in update.items()})
    return reply


def train(root: Path, attack: str, aggregation: str, rounds: int) -> dict[str, object]:
    settings = ("federation.clients_per_domain=2", "federation.alpha=100.0")
    more = (f"train.rounds={rounds}", f"federation.aggregation={aggregation}")
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
            poison(attack, reply, grid.messages[-1]) if node in ATTACKERS else reply
        )
    plan = Plan(remove_paths(config), setting.class_names, backbone.sha256, setting.n_keys)
    engine = FlowerEngine(
        session.method, plan, grid, lambda c: {x.index: x.index for x in c}, Watch(Reporter())
    )
    done = session.run(session.begin(), lambda progress: None, Reporter(), engine)
    refused = sum(bool(record.get("refused")) for record in done.records)
    return {"accuracy": done.records[-1]["mean_accuracy"], "rounds_refused": refused}


def main() -> None:
    quick = is_quick(__doc__ or "")
    root, rounds = photos_root(), 3 if quick else ROUNDS
    results = {}
    for aggregation, attack in CELLS:
        results[f"{aggregation}, {attack}"] = train(root, attack, aggregation, rounds)
        print(aggregation, attack, results[f"{aggregation}, {attack}"], flush=True)
    publish("poisoned", {"results": results}, keep=not quick)


if __name__ == "__main__":
    main()
