"""Running the cells of a comparison; a finished cell is a file, so an interrupted one goes on."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fedapt.compare.plan import IN_DOMAIN, Cell, Plan
from fedapt.core.config import Config, config_to_toml, read_config
from fedapt.core.errors import ConfigError, FederationError, UsageError
from fedapt.core.files import write_text
from fedapt.core.report import Reporter
from fedapt.data.domains import ImageTable, divide_table, load_table
from fedapt.data.folders import ImageFolders, check_complete, scan_folders
from fedapt.data.splits import split_as_configured
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.image_encoder import image_encoder
from fedapt.run.device import choose_device
from fedapt.run.session import Session
from fedapt.train.loop import Progress
from fedapt.train.methods import METHODS


@dataclass(frozen=True)
class CellResult:
    """What a cell measured.

    Attributes:
        accuracy, zero_shot: test accuracy of each domain in the chosen round.
        validation: mean accuracy on validation images in that round.
        best_round: the round that validation chose.
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
    def score(self) -> float:
        """The accuracy that the protocol asks for: of the domain left out, or the mean over all."""
        if self.error:
            return 0.0
        fold = self.cell.fold
        return self.accuracy[fold] if fold else fmean(self.accuracy.values())


@dataclass(frozen=True)
class Comparison:
    """All results, and the learning rate that each method took."""

    plan: Plan
    domains: tuple[str, ...]
    results: dict[Cell, CellResult]
    rates: dict[str, float]


def compare(config: Config, plan: Plan, out: Path, device: str, reporter: Reporter) -> Comparison:
    """Run what is not there yet.

    Args:
        config: settings that all cells share; a cell sets method, seed, split and learning rate.
        out: the comparison's folder.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UsageError: `out` holds a comparison with other settings.
        ReportedError: see `core.errors`; finished cells are kept.
    """
    folders = scan_folders(Path(config.data.root), config.data.class_names)
    check_complete(folders, config.data.allow_missing_classes)
    if len(plan.rates) > 1 and not config.data.validation_fraction:
        raise UsageError(
            where="--lr",
            found=f"{len(plan.rates)} learning rates and no validation images",
            expected="--validation above 0: test images choose nothing",
            next_step="pass --validation 0.2, or one learning rate",
        )
    _prepare(config, out)
    backbone = load_backbone(config.model.name, config.model.pretrained, choose_device(device))
    reporter.message(f"model: {backbone.label} on {backbone.device}")
    samples = [sample for domain in folders.domains for sample in folders.samples[domain]]
    table = load_table(folders, samples, image_encoder(backbone), reporter, backbone.device)
    bench = _Bench(config, folders, backbone, table, out, reporter)
    bench.total = sum(len(_all_cells(plan, method, folders.domains)) for method in plan.methods)
    rates = {}
    for method in plan.methods:
        rates[method] = _choose_rate(bench, plan, method, folders.domains)
        for protocol in plan.protocols:
            for cell in plan.cells(protocol, method, rates[method], folders.domains):
                bench.run(cell)
    return Comparison(plan, folders.domains, bench.results, rates)


def _prepare(config: Config, out: Path) -> None:
    path, text = out / "config.toml", config_to_toml(config)
    try:
        known = config_to_toml(read_config(path)) if path.is_file() else text
    except ConfigError:
        known = ""
    if known != text:
        raise UsageError(
            where=path,
            found="a comparison with other settings",
            expected="those of this command",
            next_step="choose another --out; methods, protocols and seeds may be added to one",
        )
    write_text(path, text)


def _tuning_rates(plan: Plan, method: str) -> tuple[float, ...]:
    return plan.rates if METHODS[method].trains else plan.rates[:1]


def _all_cells(plan: Plan, method: str, domains: tuple[str, ...]) -> set[Cell]:
    """As many cells as the method will need; which learning rate is chosen does not matter."""
    rates = _tuning_rates(plan, method)
    cells = {c for p in plan.protocols for c in plan.cells(p, method, rates[0], domains)}
    if len(rates) > 1:
        cells |= {c for lr in rates for c in plan.cells(IN_DOMAIN, method, lr, domains)}
    return cells


def _choose_rate(bench: _Bench, plan: Plan, method: str, domains: tuple[str, ...]) -> float:
    rates = _tuning_rates(plan, method)
    if len(rates) == 1:
        return rates[0]
    scores = {}
    for lr in rates:
        results = [bench.run(cell) for cell in plan.cells(IN_DOMAIN, method, lr, domains)]
        scores[lr] = fmean(result.validation for result in results)
    return max(rates, key=lambda lr: scores[lr])


class _Bench:
    """What the cells share: images, CLIP, and the results so far."""

    def __init__(
        self,
        config: Config,
        folders: ImageFolders,
        backbone: Backbone,
        table: ImageTable,
        out: Path,
        reporter: Reporter,
    ) -> None:
        self._config, self._folders, self._backbone = config, folders, backbone
        self._table, self._out, self._reporter = table, out, reporter
        self.results: dict[Cell, CellResult] = {}
        self.total = 0

    def run(self, cell: Cell) -> CellResult:
        """The cell's result, from its file or by training."""
        if cell not in self.results:
            path = self._out / cell.path
            result = _read_result(path, cell)
            if result is None:
                result = self._train(cell)
                write_text(path, json.dumps(dataclasses.asdict(result), indent=1) + "\n")
            self.results[cell] = result
            note = f"{cell.method} {cell.protocol} {cell.fold}".rstrip()
            note += f" seed {cell.seed} lr {cell.lr:g}: {100 * result.score:.1f} %"
            self._reporter.progress("cells", len(self.results), self.total, note)
        return self.results[cell]

    def _train(self, cell: Cell) -> CellResult:
        config = METHODS[cell.method].settle(cell.configure(self._config))
        split = split_as_configured(self._folders, config.data)
        domains = divide_table(self._table, self._folders, split)
        session = Session(config, self._backbone, self._folders, domains)
        start = session.begin()
        best = start

        def save(progress: Progress) -> None:
            nonlocal best
            if progress.is_best or progress.best_round is None:
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
        chosen = [r for r in done.records if r["round"] == done.best_round]
        return CellResult(
            cell,
            accuracy={name: d.accuracy for name, d in evaluation.domains.items() if d.n},
            zero_shot={name: d.zero_shot for name, d in evaluation.domains.items() if d.n},
            validation=chosen[0]["mean_validation"] if chosen else 0.0,
            best_round=best.rounds,
            parameters=parameters,
            share=share,
            bytes_sent=sent / max(1, len(done.records)),
            seconds=sum(record["seconds"] for record in done.records),
            curve=curve,
            routing=evaluation.routing,
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
