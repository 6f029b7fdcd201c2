"""Office-Caltech10 with `lite`, as several benchmarks train on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from statistics import fmean, stdev
from typing import TypeVar

from photos import ROOT, photos_root

from fedapt.core.config import read_config
from fedapt.core.report import Reporter
from fedapt.data.domains import Domain, divide_table, load_table
from fedapt.data.folders import scan_folders
from fedapt.data.splits import split_folders
from fedapt.model.backbone import load_backbone
from fedapt.model.checkpoint import Checkpoint
from fedapt.onnx.image_encoder import image_encoder
from fedapt.run.session import Session
from fedapt.training.loop import Progress
from fedapt.training.methods import METHODS

Cell = TypeVar("Cell")
Found = TypeVar("Found")


class Office:
    """The photos with their features, split anew for each seed."""

    def __init__(self) -> None:
        root = photos_root()
        self.config = read_config(
            ROOT / "configs" / "office_caltech10_paper.toml", (), {"data.root": str(root)}
        )
        self.backbone = load_backbone("lite")
        self.folders = scan_folders(root, self.config.data.class_names)
        samples = [s for domain in self.folders.domains for s in self.folders.samples[domain]]
        encoder = image_encoder(self.backbone)
        self.table = load_table(self.folders, samples, encoder, Reporter())

    def domains(self, seed: int, validation_fraction: float = 0.0) -> list[Domain]:
        """Training and test images of a seed, and validation images out of the former."""
        split = split_folders(
            self.folders,
            self.config.data.test_fraction,
            seed,
            validation_fraction=validation_fraction,
        )
        return divide_table(self.table, self.folders, split)


@cache
def open_office() -> Office:
    """The photos, once a process."""
    return Office()


def open_session(
    file: str,
    overrides: tuple[str, ...],
    seed: int,
    *,
    evaluate_every: int,
    validation_fraction: float = 0.0,
    joined: Checkpoint | None = None,
) -> Session:
    """To train under a seed with the settings of configs/FILE.toml, changed by `overrides`.

    Products are in bfloat16.
    """
    options = {
        "data.root": str(photos_root()),
        "data.validation_fraction": validation_fraction,
        "train.precision": "bfloat16",
        "train.evaluate_every": evaluate_every,
        "train.seed": seed,
    }
    config = read_config(ROOT / "configs" / f"{file}.toml", overrides, options)
    config = METHODS[config.train.method].resolve(config)
    office = open_office()
    domains = office.domains(seed, validation_fraction)
    return Session(config, office.backbone, office.folders, domains, joined=joined)


def run(session: Session) -> Progress:
    """All its rounds; nothing is written."""
    return session.run(session.begin(), lambda _: None, Reporter())


def in_processes(work: Callable[[Cell], Found], cells: Iterable[Cell]) -> Iterator[Found]:
    """Each cell in a process whose products take one thread, one at a time a core; in order."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch, in the processes to come
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, cells)


def spread(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation."""
    return {"mean": fmean(values), "std": stdev(values)}
