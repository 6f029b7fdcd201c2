"""1 000 clients, 2 % of them a round: seconds per round, and memory that does not grow.

    python benchmarks/many_clients.py

Four domains of 20 000 feature vectors in clusters around ten class means stand for images: what is
measured is the federation, and no image tower runs. Labels are dealt out by Dirichlet(0.5), 250
clients a domain; `lite`'s text tower and the paper's settings.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from figures import publish

from fedapt.core.config import Config, FederationConfig, TrainConfig
from fedapt.core.report import Reporter
from fedapt.data.domains import Domain, ImageSet, ImageTable
from fedapt.data.folders import ImageFolders
from fedapt.model.backbone import load_backbone
from fedapt.run.session import Session
from fedapt.training.loop import Progress

DOMAINS, CLASSES, IMAGES, ROUNDS = 4, 10, 20_000, 50


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def draw_domains(width: int) -> list[Domain]:
    """Clusters around class means, shifted in each domain; the last tenth is for testing."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, width, generator=generator)
    labels = torch.randint(0, CLASSES, (DOMAINS * IMAGES,), generator=generator)
    shift = torch.randn(DOMAINS, width, generator=generator).repeat_interleave(IMAGES, dim=0)
    noise = torch.randn(DOMAINS * IMAGES, width, generator=generator)
    table = ImageTable((), means[labels] + shift + noise, labels)
    empty = ImageSet(table, torch.empty(0, dtype=torch.int64))
    domains = []
    for d in range(DOMAINS):
        rows = torch.arange(d * IMAGES, (d + 1) * IMAGES)
        train, test = rows[: -IMAGES // 10], rows[-IMAGES // 10 :]
        domains.append(Domain(f"domain{d}", ImageSet(table, train), ImageSet(table, test), empty))
    return domains


def main() -> None:
    backbone = load_backbone("lite")
    names = tuple(f"class {i}" for i in range(CLASSES))
    domains = draw_domains(backbone.joint_width)
    folders = ImageFolders(Path(), tuple(d.name for d in domains), names, names, {})
    config = Config(
        federation=FederationConfig(clients_per_domain=250, min_images=10, sampled=20),
        train=TrainConfig(rounds=ROUNDS),
    )
    session = Session(config, backbone, folders, domains)
    resident: dict[int, int] = {}

    def watch(progress: Progress) -> None:
        resident[progress.rounds] = resident_bytes()

    done = session.run(session.begin(), watch, Reporter())
    seconds = [record["seconds"] for record in done.records]
    report = {
        "clients": DOMAINS * 250,
        "clients_per_round": 20,
        "rounds": ROUNDS,
        "images": DOMAINS * IMAGES,
        "seconds_per_round": round(sum(seconds) / len(seconds), 3),
        "resident_mb_round_5": round(resident[5] / 1e6),
        "resident_mb_round_50": round(resident[ROUNDS] / 1e6),
        "growth": round(resident[ROUNDS] / resident[5] - 1, 4),
    }
    publish("many_clients", report)


if __name__ == "__main__":
    main()
