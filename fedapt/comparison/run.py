"""A comparison: its cells, run one by one or in parallel, and the choice of each trial."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fedapt.comparison.bench import Bench, open_images
from fedapt.comparison.plan import Cell, Plan, check_settings
from fedapt.comparison.result import CellResult
from fedapt.core.config import Config, config_to_toml, read_config
from fedapt.core.errors import ConfigError, UsageError
from fedapt.core.files import write_text
from fedapt.core.report import Reporter
from fedapt.data.domains import ImageTable
from fedapt.model.backbone import Backbone, hash_tensors, load_backbone
from fedapt.run.device import choose_device
from fedapt.training.methods import METHODS

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized


@dataclass(frozen=True)
class Comparison:
    """All results.

    Attributes:
        chosen: the cell that each trial's validation images chose, by protocol and method.
    """

    plan: Plan
    domains: tuple[str, ...]
    results: dict[Cell, CellResult]
    chosen: dict[tuple[str, str], list[Cell]]

    def chosen_results(self, protocol: str, method: str) -> list[CellResult]:
        """One for each fold and seed."""
        return [self.results[cell] for cell in self.chosen[protocol, method]]


def compare(
    config: Config, plan: Plan, out: Path, device: str, reporter: Reporter, processes: int = 1
) -> Comparison:
    """Run the missing cells, and return all results.

    Validation images of the trained domains choose a round and a learning rate, in each trial
    separately. A method that reads no labels takes `train.lr` and its last round, because a choice
    needs labels.

    Args:
        config: settings that all cells share; a cell sets method, seed, split and learning rate.
        out: the comparison's folder.
        device: `auto`, `cpu` or `cuda`.
        processes: number of processes that run cells in parallel; on the CPU each has its own
            core. A cell's result does not change, except its seconds.

    Raises:
        UsageError: `out` holds a comparison with other settings, images or CLIP, or several
            learning rates have no validation images.
        ReportedError: see `core.errors`; finished cells are kept.
    """
    check_settings(config, plan.protocols)
    if len(plan.rates) > 1 and not config.data.validation_fraction:
        raise UsageError(
            where="lrs",
            found=f"{len(plan.rates)} learning rates and no validation images",
            expected="`validation` above 0, because test images must not choose a learning rate",
            next_step="set `validation` to 0.2, or one learning rate",
        )
    _check_same(out / "config.toml", config_to_toml(config), "settings", _reread_settings)
    backbone = load_backbone(
        config.model.name, config.model.pretrained, choose_device(device), config.data.preprocess
    )
    reporter.message(f"model: {backbone.label} on {backbone.device}")
    images, table = open_images(config, backbone, reporter)
    _check_same(out / "origin.json", _describe_origin(backbone, table), "images or another CLIP")
    bench = Bench(config, images, table, backbone, out, reporter)
    trials = {
        (protocol, method): plan.trials(
            protocol,
            method,
            plan.rates if METHODS[method].reads_labels else (config.train.lr,),
            images.domains,
        )
        for method in plan.methods
        for protocol in plan.protocols
    }
    cells = [cell for row in trials.values() for trial in row for cell in trial]
    bench.plan(cells)
    if processes > 1:
        _run_side_by_side(bench, config, cells, out, device, processes)
    chosen = {
        key: [_choose([bench.run(cell) for cell in trial]) for trial in row]
        for key, row in trials.items()
    }
    return Comparison(plan, images.domains, bench.results, chosen)


def _run_side_by_side(
    bench: Bench, config: Config, cells: list[Cell], out: Path, device: str, processes: int
) -> None:
    """Run missing cells in other processes; `bench` then reads their files."""
    # seed by seed: an interrupted comparison then has complete tables of fewer seeds
    missing = sorted((c for c in cells if not bench.is_finished(c)), key=lambda cell: cell.seed)
    context = get_context("spawn")
    with ProcessPoolExecutor(
        min(processes, max(1, len(missing))),
        mp_context=context,
        initializer=_open_bench,
        initargs=(config, out, device, context.Value("i", 0)),
    ) as pool:
        try:
            for done in as_completed([pool.submit(_run_cell, cell) for cell in missing]):
                bench.tell(done.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


_bench: Bench | None = None  # in a worker process


def _open_bench(config: Config, out: Path, device: str, started: Synchronized[int]) -> None:
    global _bench
    with started.get_lock():
        number = started.value
        started.value += 1
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # the clients of a round then run one by one
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    backbone = load_backbone(config.model.name, config.model.pretrained, choose_device(device))
    _bench = Bench(config, *open_images(config, backbone, Reporter()), backbone, out, Reporter())


def _run_cell(cell: Cell) -> CellResult:
    assert _bench is not None  # the initializer has run
    return _bench.run(cell)


def _choose(results: list[CellResult]) -> Cell:
    """The first cell with the best validation accuracy; a diverged cell if all have diverged."""
    return max(results, key=lambda result: (not result.error, result.validation)).cell


def _check_same(
    path: Path, text: str, what: str, read: Callable[[Path], str] = Path.read_text
) -> None:
    """Store what all cells of a folder share; refuse a folder with another value."""
    is_new = not path.is_file() and not (path.parent / "cells").is_dir()
    try:
        is_same = is_new or read(path) == text
    except (ConfigError, OSError, UnicodeDecodeError):
        is_same = False
    if not is_same:
        raise UsageError(
            where=path,
            found=f"a comparison with other {what}",
            expected="those of this command",
            next_step="choose another `out`; methods, protocols, seeds and rates may be added",
        )
    write_text(path, text)


def _reread_settings(path: Path) -> str:
    """Stored settings in today's form; settings added since have their defaults."""
    return config_to_toml(read_config(path))


def _describe_origin(backbone: Backbone, table: ImageTable) -> str:
    images = hash_tensors([("labels", table.labels)], table.digest.encode())
    return json.dumps({"clip": backbone.sha256, "images": images}, indent=1) + "\n"
