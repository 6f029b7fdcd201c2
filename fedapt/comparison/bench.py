"""The cells of a comparison, trained one by one; a finished cell is a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from fedapt.comparison.bundle import SUFFIX, read_bundle
from fedapt.comparison.plan import Cell
from fedapt.comparison.result import CellResult, read_result
from fedapt.core.config import Config, DataConfig
from fedapt.core.errors import DataError, FederationError
from fedapt.core.files import write_text
from fedapt.core.report import Reporter
from fedapt.data.collection import Collection, open_collection
from fedapt.data.domains import Domain, ImageTable
from fedapt.data.splits import split_as_configured
from fedapt.model.backbone import Backbone
from fedapt.onnx.image_encoder import image_encoder
from fedapt.run.session import Session
from fedapt.training.loop import Progress
from fedapt.training.methods import METHODS
from fedapt.training.methods.base import replace_train


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


class Bench:
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
        """Check that every split has training, validation and test images."""
        self._total = len(cells)
        for cell in cells:
            self._divide(cell.configure(self._config).data)

    def run(self, cell: Cell) -> CellResult:
        """The cell's result, from its file or by training."""
        if cell not in self.results:
            path = self._out / cell.path
            result = read_result(path, cell)
            if result is None:
                result = self._train(cell)
                write_text(path, json.dumps(dataclasses.asdict(result), indent=1) + "\n")
            self.tell(result)
        return self.results[cell]

    def is_finished(self, cell: Cell) -> bool:
        """Whether the cell's file exists."""
        return read_result(self._out / cell.path, cell) is not None

    def tell(self, result: CellResult) -> None:
        """Store a result, and report it."""
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
