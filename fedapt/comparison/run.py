"""Running the cells of a comparison; a finished cell is a file, so an interrupted one goes on."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from fedapt.comparison.bundle import SUFFIX, read_bundle
from fedapt.comparison.plan import Cell, Plan, check_settings
from fedapt.core.config import Config, DataConfig, config_to_toml, read_config
from fedapt.core.errors import ConfigError, DataError, FederationError, UsageError
from fedapt.core.files import write_text
from fedapt.core.report import Reporter
from fedapt.data.collection import Collection, open_collection
from fedapt.data.domains import Domain, ImageTable
from fedapt.data.splits import split_as_configured
from fedapt.model.backbone import Backbone, hash_tensors, load_backbone
from fedapt.onnx.image_encoder import image_encoder
from fedapt.run.device import choose_device
from fedapt.run.session import Session
from fedapt.training.evaluate import share_routed
from fedapt.training.loop import Progress
from fedapt.training.methods import METHODS
from fedapt.training.methods.base import replace_train

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized


@dataclass(frozen=True)
class CellResult:
    """Result of a cell.

    Attributes:
        accuracy, zero_shot: test accuracy of each domain in the chosen round.
        validation: mean accuracy on validation images in that round.
        best_round: the round that validation chose; the last of a method that reads no labels.
        parameters: values that a client trains.
        share: of all values of the CLIP.
        bytes_sent: of each round, all clients, both ways.
        seconds: of training, without evaluation.
        curve: (round, bytes sent until then, accuracy of each domain) of each evaluation.
        routing: domain -> key -> share of images; empty without keys.
        error: why there is no result, such as a loss that is not finite.
    """

    cell: Cell
    accuracy: dict[str, float] = dataclasses.field(default_factory=dict)
    zero_shot: dict[str, float] = dataclasses.field(default_factory=dict)
    validation: float = 0.0
    best_round: int = 0
    parameters: int = 0
    share: float = 0.0
    bytes_sent: float = 0.0
    seconds: float = 0.0
    curve: list[tuple[int, int, dict[str, float]]] = dataclasses.field(default_factory=list)
    routing: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    error: str = ""

    @property
    def routed(self) -> float | None:
        """Mean share of a trained domain's images that are routed to it; None without keys."""
        shares = [
            share_routed(domain, row)
            for domain, row in self.routing.items()
            if domain != self.cell.fold
        ]
        return fmean(shares) if shares else None

    @property
    def score(self) -> float:
        """The accuracy that the protocol asks for: of the domain left out, or the mean over all."""
        if self.error:
            return 0.0
        fold = self.cell.fold
        return self.accuracy[fold] if fold else fmean(self.accuracy.values())


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
    """Run what is not there yet.

    What chooses a round and a learning rate are validation images of the domains that train, in
    each trial its own: no trial profits from what another has seen. A method that reads no labels
    takes `train.lr` and its last round, as labels would choose among several.

    Args:
        config: settings that all cells share; a cell sets method, seed, split and learning rate.
        out: the comparison's folder.
        device: `auto`, `cpu` or `cuda`.
        processes: that run cells side by side, each on a core of its own where it computes on
            the CPU. A cell's result is the same, but for its seconds.

    Raises:
        UsageError: `out` holds a comparison with other settings, images or CLIP, or there is
            nothing to choose by.
        ReportedError: see `core.errors`; finished cells are kept.
    """
    check_settings(config, plan.protocols)
    if len(plan.rates) > 1 and not config.data.validation_fraction:
        raise UsageError(
            where="lrs",
            found=f"{len(plan.rates)} learning rates and no validation images",
            expected="`validation` above 0: test images choose nothing",
            next_step="set `validation` to 0.2, or one learning rate",
        )
    _check_same(out / "config.toml", config_to_toml(config), "settings", _reread_settings)
    backbone = load_backbone(
        config.model.name, config.model.pretrained, choose_device(device), config.data.preprocess
    )
    reporter.message(f"model: {backbone.label} on {backbone.device}")
    images, table = open_images(config, backbone, reporter)
    _check_same(out / "origin.json", _describe_origin(backbone, table), "images or another CLIP")
    bench = _Bench(config, images, table, backbone, out, reporter)
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


def open_images(
    config: Config, backbone: Backbone, reporter: Reporter
) -> tuple[Collection, ImageTable]:
    """The images of a comparison: a folder of domains, or a bundle of their features.

    Raises:
        ReportedError: they cannot be read.
    """
    root = Path(config.data.root)
    if root.suffix == SUFFIX:
        folders, table = read_bundle(root, backbone)
        return Collection(folders, split_as_configured(folders, config.data)), table
    images = open_collection(config.data)
    return images, images.load_table(image_encoder(backbone), reporter, backbone.device)


def _run_side_by_side(
    bench: _Bench, config: Config, cells: list[Cell], out: Path, device: str, processes: int
) -> None:
    """Let other processes write the cells that are missing; `bench` reads them then."""
    # seed by seed: one that is interrupted has whole tables of fewer seeds
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


_bench: _Bench | None = None  # of a process that runs cells for another


def _open_bench(config: Config, out: Path, device: str, started: Synchronized[int]) -> None:
    global _bench
    with started.get_lock():
        number = started.value
        started.value += 1
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # clients of a round then run one after another
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    backbone = load_backbone(config.model.name, config.model.pretrained, choose_device(device))
    _bench = _Bench(config, *open_images(config, backbone, Reporter()), backbone, out, Reporter())


def _run_cell(cell: Cell) -> CellResult:
    assert _bench is not None  # the initializer has run
    return _bench.run(cell)


def _choose(results: list[CellResult]) -> Cell:
    """The first of the best on its validation images; one that diverged, if all did."""
    return max(results, key=lambda result: (not result.error, result.validation)).cell


def _check_same(
    path: Path, text: str, what: str, read: Callable[[Path], str] = Path.read_text
) -> None:
    """Keep what the cells of a folder have in common; refuse to add cells that have it not."""
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
    """As they would be written today: a setting that is new since has its default."""
    return config_to_toml(read_config(path))


def _describe_origin(backbone: Backbone, table: ImageTable) -> str:
    images = hash_tensors([("labels", table.labels)], table.digest.encode())
    return json.dumps({"clip": backbone.sha256, "images": images}, indent=1) + "\n"


class _Bench:
    """State that the cells share: images, splits, CLIP, and the results so far."""

    def __init__(
        self,
        config: Config,
        images: Collection,
        table: ImageTable,
        backbone: Backbone,
        out: Path,
        reporter: Reporter,
    ) -> None:
        self._config, self._images, self._backbone = config, images, backbone
        self._table, self._out, self._reporter = table, out, reporter
        self._domains: dict[tuple[int, int], list[Domain]] = {}
        self.results: dict[Cell, CellResult] = {}
        self._total = 0

    def plan(self, cells: list[Cell]) -> None:
        """Before anything is trained: every split has images to train, choose and test with."""
        self._total = len(cells)
        for cell in cells:
            self._divide(cell.configure(self._config).data)

    def run(self, cell: Cell) -> CellResult:
        """The cell's result, from its file or by training."""
        if cell not in self.results:
            path = self._out / cell.path
            result = _read_result(path, cell)
            if result is None:
                result = self._train(cell)
                write_text(path, json.dumps(dataclasses.asdict(result), indent=1) + "\n")
            self.tell(result)
        return self.results[cell]

    def is_finished(self, cell: Cell) -> bool:
        """Whether its file is there."""
        return _read_result(self._out / cell.path, cell) is not None

    def tell(self, result: CellResult) -> None:
        """Take a result, and report that it is there."""
        cell = result.cell
        self.results[cell] = result
        note = f"{cell.method} {cell.protocol} {cell.fold}".rstrip()
        note += f" seed {cell.seed} lr {cell.lr:g}: {100 * result.score:.1f} %"
        self._reporter.progress("cells", len(self.results), self._total, note)

    def _divide(self, config: DataConfig) -> list[Domain]:
        """The images of each domain and purpose; a split is made once."""
        key = config.split_seed, config.shots
        if key not in self._domains:
            domains = self._images.split_again(config).divide(self._table)
            for domain in domains:
                where = f"{self._images.root / domain.name}, seed {config.split_seed}"
                if not len(domain.test):
                    raise _missing(where, "test", "data.test_fraction")
                if config.validation_fraction and not len(domain.validation):
                    raise _missing(where, "validation", "data.validation_fraction")
            self._domains[key] = domains
        return self._domains[key]

    def _train(self, cell: Cell) -> CellResult:
        method = METHODS[cell.method]
        config = method.resolve(cell.configure(self._config))
        if not method.reads_labels:
            config = replace_train(config, patience=0)
        domains = self._divide(config.data)
        session = Session(config, self._backbone, self._images.folders, domains)
        start = session.begin()
        best = start

        def save(progress: Progress) -> None:
            nonlocal best
            if progress.is_best or progress.best_round is None or not method.reads_labels:
                best = progress

        try:
            done = session.run(start, save, Reporter())
        except FederationError as error:
            return CellResult(cell, error=f"{error.where}: {error.found}")
        evaluation = session.evaluate(best)
        parameters, share = session.count_parameters(start)
        sent, curve = 0, []
        for record in done.records:
            sent += record["bytes_sent"]
            if "accuracy" in record:
                curve.append((record["round"], sent, record["accuracy"]))
        chosen = [r for r in done.records if r["round"] == best.rounds]
        return CellResult(
            cell,
            accuracy={name: d.accuracy for name, d in evaluation.domains.items() if d.n},
            zero_shot={name: d.zero_shot for name, d in evaluation.domains.items() if d.n},
            validation=chosen[0].get("mean_validation", 0.0) if chosen else 0.0,
            best_round=best.rounds,
            parameters=parameters,
            share=share,
            bytes_sent=sent / max(1, len(done.records)),
            seconds=sum(record["seconds"] for record in done.records),
            curve=curve,
            routing=evaluation.routing,
        )


def _missing(where: str, purpose: str, setting: str) -> DataError:
    return DataError(
        where=where,
        found=f"no {purpose} image",
        expected="at least one in every domain",
        next_step=f"raise {setting}, or add images",
    )


def _read_result(path: Path, cell: Cell) -> CellResult | None:
    """A finished cell; None where it has to be run."""
    try:
        fields: dict[str, Any] = json.loads(path.read_text("utf-8"))
        fields["cell"] = Cell(**fields["cell"])
        fields["curve"] = [(number, sent, shares) for number, sent, shares in fields["curve"]]
        result = CellResult(**fields)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return result if result.cell == cell else None
