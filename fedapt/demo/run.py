"""The whole line on the emoji set: data, train, export, classify with the runtime, report."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from fedapt.core.config import Config, DataConfig, ModelConfig, PromptConfig, TrainConfig
from fedapt.core.errors import UsageError
from fedapt.core.records import Record, read_records
from fedapt.core.report import Reporter
from fedapt.data.collection import Collection, open_collection
from fedapt.data.emoji import build_emoji_set
from fedapt.model.backbone import load_backbone
from fedapt.model.image_encoder import read_tower
from fedapt.run.folder import RunFolder
from fedapt.run.train import train
from fedapt_export.export import ExportSettings, write_model
from fedapt_export.export import export as export_checkpoint
from fedapt_export.fuse import build_zero_shot_manifest, fuse
from fedapt_export.head import zero_shot_head
from fedapt_export.parity import Parity
from fedapt_runtime import Classifier, Prediction
from fedapt_runtime.batch import Summary, classify_files

# what differs from the paper's settings: fewer rounds with larger steps, for a first look
ROUNDS = 30
LR = 0.1
CONTEXT_LENGTH = 16


@dataclass(frozen=True)
class Classified:
    """A test image, what it shows, and what the runtime said of it."""

    path: Path
    domain: str
    label: str
    prediction: Prediction

    @property
    def is_right(self) -> bool:
        """Whether the best class is the true one."""
        return self.prediction.label == self.label


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured, all of it through the runtime.

    Attributes:
        domains, classes: names.
        fedapt, zero_shot: every test image under the fused model and under zero-shot CLIP.
        records: one per round.
        parity: of the export.
        summary: of classifying the test images with the fused model.
        model: the fused file.
        seconds: of each stage.
    """

    domains: tuple[str, ...]
    classes: tuple[str, ...]
    fedapt: list[Classified]
    zero_shot: list[Classified]
    records: list[Record]
    parity: Parity
    summary: Summary
    model: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def accuracy(self, results: list[Classified]) -> dict[str, float]:
        """Share of right answers in each domain."""
        return {
            domain: _share([r.is_right for r in results if r.domain == domain])
            for domain in self.domains
        }

    def mean(self, results: list[Classified]) -> float:
        """Mean of the domains' shares."""
        shares = self.accuracy(results).values()
        return sum(shares) / len(shares)

    def routing(self) -> dict[str, dict[str, float]]:
        """Domain -> key -> share of the domain's images that the key's weight was largest for."""
        return {
            domain: {
                key: _share([r.prediction.domain == key for r in self.fedapt if r.domain == domain])
                for key in self.domains
            }
            for domain in self.domains
        }


def _share(values: list[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def check_out(out: Path) -> None:
    """Refuse a folder that holds anything but an earlier demo: a ROOT of images, for one.

    Raises:
        UsageError: it does.
    """
    # its name begins with a dot: what a demo that was killed while it drew has left
    is_empty = not out.is_dir() or all(path.name.startswith(".") for path in out.iterdir())
    if not is_empty and not (out / "data" / "ATTRIBUTION.md").is_file():
        raise UsageError(
            where=out,
            found="a folder with other files in it",
            expected="a new folder, or that of an earlier demo",
            next_step="choose another --out",
        )


def run_demo(out: Path, reporter: Reporter) -> DemoResult:
    """Run every stage below `out`; finished stages are kept, so an interrupted demo goes on.

    Raises:
        UsageError: `out` holds something else.
        ReportedError: see `fedapt.core.errors`.
    """
    check_out(out)
    seconds = {}
    started = time.monotonic()

    def lap(stage: str) -> None:
        nonlocal started
        seconds[stage] = time.monotonic() - started
        started = time.monotonic()

    data, run = out / "data", RunFolder(out / "run")
    if not data.is_dir():
        build_emoji_set(data, reporter)
    lap("data")
    config = Config(
        model=ModelConfig(),
        data=DataConfig(root=str(data.resolve())),
        prompt=PromptConfig(context_length=CONTEXT_LENGTH),
        train=TrainConfig(rounds=ROUNDS, lr=LR, evaluate_every=1),
    )
    train(config, run.path, resume=True, device="auto", reporter=reporter)
    lap("train")
    model, zero_shot = out / "model.onnx", out / "zero_shot.onnx"
    exported = export_checkpoint(run.checkpoint, model, ExportSettings(data=data), reporter)
    images = open_collection(config.data)
    backbone = load_backbone(config.model.name)
    head = zero_shot_head(backbone, images.classes)
    graph = fuse(read_tower(backbone), head, backbone.label)
    write_model(graph, build_zero_shot_manifest(backbone, images.classes), zero_shot)
    lap("export")
    samples = _test_samples(images)
    predicted, summary = _classify(model, samples, out / "predictions.jsonl")
    lap("classify")
    zero_shot_predicted, _ = _classify(zero_shot, samples, out / "zero_shot.jsonl")
    return DemoResult(
        domains=images.domains,
        classes=images.classes,
        fedapt=predicted,
        zero_shot=zero_shot_predicted,
        records=read_records(run.records),
        parity=exported.parity,
        summary=summary,
        model=model,
        seconds=seconds,
    )


@dataclass(frozen=True)
class _TestImage:
    path: Path
    domain: str
    label: str


def _test_samples(images: Collection) -> list[_TestImage]:
    return [
        _TestImage(images.root / sample.path, domain, images.classes[sample.label])
        for domain, sample in images.samples("test")
    ]


def _classify(model: Path, images: list[_TestImage], out: Path) -> tuple[list[Classified], Summary]:
    classifier = Classifier.load(model, device="cpu")
    summary = classify_files(classifier, [str(image.path) for image in images], out)
    # read back what the runtime wrote: the figures are those of the file
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    return [
        Classified(image.path, image.domain, image.label, Prediction(**row))
        for image, row in zip(images, rows, strict=True)
    ], summary
