"""All figures of one run, from its records and, if its test images exist here, its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedapt.core.config import remove_paths
from fedapt.core.errors import UsageError
from fedapt.core.records import Record, read_records
from fedapt.core.report import Reporter
from fedapt.model.checkpoint import CheckpointInfo, load_checkpoint
from fedapt.report.answers import Answer, expected_error, find_bins, list_answers
from fedapt.run.evaluate import Trained, open_trained
from fedapt.run.folder import RunFolder
from fedapt.training.evaluate import Evaluation, accuracy
from fedapt.training.loop import mean
from fedapt.training.methods import METHODS
from fedapt.training.methods.analytic import AdaptiveAnalytic


@dataclass(frozen=True)
class RunReport:
    """The figures of a run.

    Attributes:
        name: of the run folder.
        info: of the checkpoint.
        records: of the rounds behind the checkpoint.
        evaluation: evaluation of the checkpoint; None without test images.
        alone: accuracy of a classifier of each party's own images, if the checkpoint has it.
        answers: to each test image.
    """

    name: str
    info: CheckpointInfo
    records: list[Record]
    evaluation: Evaluation | None = None
    alone: Mapping[str, float] | None = None
    answers: Sequence[Answer] = ()

    @property
    def title(self) -> str:
        """The method's name in tables."""
        return METHODS[self.info.method].title

    @property
    def n_images(self) -> dict[str, int]:
        """Number of test images of each domain; empty without test images."""
        return {n: d.n for n, d in self.evaluation.domains.items()} if self.evaluation else {}

    @property
    def accuracy(self) -> dict[str, float]:
        """Accuracy of each domain that was tested."""
        if self.evaluation is None:
            return self._last("accuracy")
        return {n: d.accuracy for n, d in self.evaluation.domains.items() if d.n}

    @property
    def alternatives(self) -> dict[str, Mapping[str, float]]:
        """Accuracy of each domain under the other available classifiers, by their names."""
        found: dict[str, Mapping[str, float]] = {}
        if self.evaluation is not None and METHODS[self.info.method].trains:
            domains = self.evaluation.domains
            found["zero-shot"] = {n: d.zero_shot for n, d in domains.items() if d.n}
        if self.alone:
            found["each party alone"] = self.alone
        return {name: shares for name, shares in found.items() if shares}

    @property
    def means(self) -> dict[str, float]:
        """Mean over the tested domains, by classifier; only of classifiers with every domain."""
        series = {self.title: self.accuracy, **self.alternatives}
        return {
            title: mean(dict(shares))
            for title, shares in series.items()
            if shares and set(shares) == set(self.accuracy)
        }

    @property
    def routed(self) -> dict[str, float]:
        """Share of each domain's test images that are routed to it, of a method with keys."""
        return self._last("routed") if self.evaluation is None else self.evaluation.routed

    @property
    def calibration(self) -> dict[str, float]:
        """Expected calibration error of each domain."""
        if self.evaluation is None:
            return self._last("calibration_error")
        return dict(self.evaluation.calibration)

    @property
    def n_bytes(self) -> list[int]:
        """Bytes to all clients and back in each round, with those of its evaluation."""
        return [r.get("bytes_sent", 0) + r.get("evaluation_bytes", 0) for r in self.records]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "method": self.title,
            "rounds": self.info.rounds,
            "images": self.n_images,
            "accuracy": self.accuracy,
            "mean": self.means.get(self.title),
            "alternatives": {name: dict(found) for name, found in self.alternatives.items()},
            "routed": self.routed,
            "calibration_error": self.calibration,
            "calibration_error_of_all": expected_error(find_bins(self.answers))
            if self.answers
            else None,
            "bytes": sum(self.n_bytes),
        }

    def _last(self, name: str) -> dict[str, float]:
        """A figure from the last record that has it."""
        return dict(next((r[name] for r in reversed(self.records) if name in r), {}))


def collect_figures(
    checkpoint: Path, data: Path | None, device: str, reporter: Reporter
) -> RunReport:
    """Measure a checkpoint, and read the records beside it.

    Args:
        data: folder of its test images; None for the figures of the records only.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UsageError: there are neither images nor records.
        CheckpointError: damaged, or of another CLIP.
        DataError: the folders are wrong, or hold a class that the checkpoint does not know.
        FileError: the records are damaged.
    """
    loaded = load_checkpoint(checkpoint)
    name = checkpoint.resolve().parent.name
    records = read_records(RunFolder(checkpoint.parent).records)
    records = records[: loaded.info.rounds]
    if data is not None:
        trained = open_trained(loaded, data, device, reporter)
        return RunReport(
            name,
            loaded.info,
            records,
            trained.evaluate(reporter),
            measure_alone(trained),
            list_answers(trained),
        )
    if not records:
        raise UsageError(
            where="data",
            found="neither test images nor records of rounds beside the checkpoint",
            expected="the folder with the domains",
            next_step="name the folder",
        )
    reporter.message(
        "the run's images were not found; the report has the figures of the records only"
    )
    return RunReport(name, loaded.info, records)


def measure_alone(trained: Trained) -> dict[str, float] | None:
    """Accuracy of each domain under the sums of its own images; None without such sums."""
    method, learned = trained.method, trained.learned
    if not isinstance(method, AdaptiveAnalytic):
        return None
    keys = trained.checkpoint.info.keys
    shares = {}
    for domain in trained.domains:
        if len(domain.test) and domain.name in keys:
            images = domain.test.load()
            head = method.alone(learned, keys.index(domain.name))
            shares[domain.name] = accuracy(head.logits(images.features), images.labels)
    return shares


def describe_clip(report: RunReport) -> str:
    """The CLIP by its name; the hash of a CLIP in a folder."""
    model = remove_paths(report.info.config).model
    name = " ".join(filter(None, (model.name, model.pretrained)))
    return name or f"of hash {report.info.clip_sha256[:12]}"


def say_count(n: int, what: str) -> str:
    """A number with its noun, in the plural unless it is one."""
    return f"{n} {what}" + ("s" if n != 1 else "")
