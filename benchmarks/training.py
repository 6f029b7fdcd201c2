"""Federated training of ViT-B/32 on Office-Caltech10, beside the straightforward loop.

    python benchmarks/training.py

The straightforward loop runs the image tower and all 77 tokens in every step, in torch, as research
scripts do. It is measured on two steps and extrapolated to the 50 rounds that fedapt really runs,
with its evaluations: once with a cold and once with a warm feature cache, and warm with the text
tower's matrix products in bfloat16, in the same process. `random` weights: speed does not depend on
their values. Also measured: a whole federation of `adaptive-analytic` with a warm cache, a round of
`lite`, and the memory of 345 classes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from figures import publish
from full_prompts import encode_full_prompts
from photos import ROOT, photos_root
from torch.nn.functional import cross_entropy, normalize

from fedapt.core.config import Config, ModelConfig, read_config
from fedapt.core.report import Reporter
from fedapt.data.domains import Domain, load_domains
from fedapt.data.folders import ImageFolders, scan_folders
from fedapt.data.splits import split_folders
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.image_tower import image_tower
from fedapt.model.prompt import draw_keys, personalise
from fedapt.onnx.image_encoder import image_encoder
from fedapt.run.session import Session
from fedapt.training.methods import METHODS

MEASURED_STEPS = 2


def straightforward_step(
    backbone: Backbone, session: Session, keys: torch.Tensor, batch: int
) -> float:
    """Seconds of one step: `batch` images through the tower, 77 tokens a prompt, SGD."""
    start = session.begin().learned
    context = start["meta_prompt"].clone().requires_grad_()
    network = start["adaptive_network"].clone().requires_grad_()
    optimizer = torch.optim.SGD([context, network], lr=0.01, momentum=0.9)
    pixels = torch.zeros(batch, *backbone.preprocessing.size, 3, dtype=torch.uint8)
    labels = torch.zeros(batch, dtype=torch.int64)
    started = time.perf_counter()
    with torch.no_grad():
        features = image_tower(backbone)(pixels)
    prompts = personalise(context, keys, torch.eye(len(keys))[0])
    text_features = encode_full_prompts(session.method.setting.text, prompts)
    logits = backbone.logit_scale * normalize(features, dim=-1) @ text_features.T
    loss = cross_entropy(logits, labels) + cross_entropy(features @ network.T, labels)
    loss.backward()
    optimizer.step()
    return time.perf_counter() - started


def run_fedapt(
    config: Config, backbone: Backbone, folders: ImageFolders
) -> tuple[float, list[Domain], Session]:
    """Seconds from folders to the last round, with whatever the cache holds."""
    started = time.perf_counter()
    split = split_folders(folders, config.data.test_fraction, config.data.split_seed)
    domains = load_domains(folders, split, image_encoder(backbone), Reporter())
    session = Session(config, backbone, folders, domains)
    session.run(session.begin(), lambda _: None, Reporter())
    return time.perf_counter() - started, domains, session


def closed_form(config: Config) -> Config:
    """The same run with `adaptive-analytic`: one round of sums."""
    train = dataclasses.replace(config.train, method="adaptive-analytic")
    return METHODS[train.method].resolve(dataclasses.replace(config, train=train))


def lite_seconds_per_round(config: Config, folders: ImageFolders) -> float:
    """Seconds of a round of `lite`, without evaluation."""
    config = dataclasses.replace(config, model=ModelConfig("lite"))
    split = split_folders(folders, config.data.test_fraction, config.data.split_seed)
    backbone = load_backbone("lite")
    domains = load_domains(folders, split, image_encoder(backbone), Reporter())
    session = Session(config, backbone, folders, domains)
    done = session.run(session.begin(), lambda _: None, Reporter())
    return round(sum(r["seconds"] for r in done.records) / len(done.records), 3)


def memory_of_many_classes() -> dict[str, float]:
    """Peak GB and seconds of a round of 345 classes, 24 tokens, six clients; its own process."""
    script = ROOT / "benchmarks" / "many_classes.py"
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    config = read_config(ROOT / "configs" / "office_caltech10_paper.toml")
    root = photos_root()
    config = dataclasses.replace(config, model=ModelConfig("ViT-B-32-quickgelu", "random"))
    backbone = load_backbone(config.model.name, config.model.pretrained)
    folders = scan_folders(root, config.data.class_names)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["FEDAPT_CACHE"] = str(Path(cache))
        cold, domains, session = run_fedapt(config, backbone, folders)
        warm, _, _ = run_fedapt(config, backbone, folders)
        half = dataclasses.replace(config.train, precision="bfloat16")
        warm_half, _, _ = run_fedapt(dataclasses.replace(config, train=half), backbone, folders)
        closed, _, _ = run_fedapt(closed_form(config), backbone, folders)
        lite = lite_seconds_per_round(config, folders)
    batch = config.train.batch_size
    keys = draw_keys(4, config.prompt.context_length, backbone.text_tower.width, 0)
    steps = [
        straightforward_step(backbone, session, keys, batch) for _ in range(MEASURED_STEPS + 1)
    ]
    step = min(steps[1:])
    # the last batch of each client is short: count images, not steps, for the image tower's part
    images = sum(len(d.train) for d in domains)
    n_steps = sum(math.ceil(len(d.train) / batch) for d in domains)
    few = straightforward_step(backbone, session, keys, 1)
    per_image = (step - few) / (batch - 1)
    per_round = n_steps * (few - per_image) + images * per_image
    straightforward = config.train.rounds * per_round
    report = {
        "model": "ViT-B-32-quickgelu, random weights",
        "rounds": config.train.rounds,
        "clients": len(domains),
        "train_images": images,
        "cold_seconds": round(cold, 1),
        "warm_seconds": round(warm, 1),
        "straightforward_seconds_extrapolated": round(straightforward),
        "straightforward_measured_steps": MEASURED_STEPS,
        "cold_ratio": round(straightforward / cold, 1),
        "warm_ratio": round(straightforward / warm, 1),
        "warm_bfloat16_seconds": round(warm_half, 1),
        "warm_bfloat16_ratio": round(straightforward / warm_half, 1),
        "warm_adaptive_analytic_seconds": round(closed, 1),
        "lite_seconds_per_round": lite,
        "memory_of_345_classes": memory_of_many_classes(),
    }
    publish("training", report)


if __name__ == "__main__":
    main()
