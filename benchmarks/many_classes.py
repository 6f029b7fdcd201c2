"""One round of 345 classes and 24 context tokens on ViT-B/32: peak memory and seconds, as JSON."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import torch

from fedapt.core.config import Config, TrainConfig
from fedapt.core.report import Reporter
from fedapt.data.domains import Domain, ImageSet, ImageTable
from fedapt.data.folders import ImageFolders
from fedapt.model.backbone import load_backbone
from fedapt.run.session import Session

CLASSES, DOMAINS, IMAGES = 345, 6, 256  # DomainNet's; one step for each client


def train_round(device: str = "cpu") -> float:
    """Seconds of one round on a device."""
    backbone = load_backbone("ViT-B-32-quickgelu", "random", device)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(DOMAINS * IMAGES, backbone.joint_width, generator=generator)
    labels = torch.arange(DOMAINS * IMAGES) % CLASSES
    table = ImageTable((), features.to(device), labels.to(device))
    empty = ImageSet(table, torch.empty(0, dtype=torch.int64, device=device))
    domains = [
        Domain(f"domain{d}", ImageSet(table, rows), empty, empty)
        for d, rows in enumerate(torch.arange(DOMAINS * IMAGES, device=device).split(IMAGES))
    ]
    names = tuple(f"thing {i}" for i in range(CLASSES))
    folders = ImageFolders(Path(), tuple(d.name for d in domains), names, names, {})
    session = Session(Config(train=TrainConfig(rounds=1)), backbone, folders, domains)
    done = session.run(session.begin(), lambda _: None, Reporter())
    return float(done.records[0]["seconds"])


def main() -> None:
    seconds = train_round()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak_gb": round(peak / 1e9, 2), "seconds": seconds}))


if __name__ == "__main__":
    main()
