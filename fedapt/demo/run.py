"""The complete demo on the emoji set: data, training, export, classification, report."""

from __future__ import annotations

import dataclasses
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
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.checkpoint import load_checkpoint
from fedapt.onnx.tower import read_tower
from fedapt.run.folder import RunFolder
from fedapt.run.rebuild import rebuild_method
from fedapt.run.train import train
from fedapt.training.methods.analytic import AdaptiveAnalytic
from fedapt_export.export import export as export_checkpoint
from fedapt_export.fuse import build_zero_shot_manifest, fuse
from fedapt_export.head import zero_shot_head
from fedapt_export.model_file import write_model
from fedapt_export.parity import Parity
from fedapt_export.settings import ExportSettings
from fedapt_export.swap import write_head
from fedapt_runtime import Classifier, Manifest, Prediction
from fedapt_runtime.batch import Summary, classify_files

# quick settings: fewer rounds with less work, and a decreasing learning rate
ROUNDS = 20
CONTEXT_LENGTH = 4
ROUTER_LR = 3.0


@dataclass(frozen=True)
class Classified:
    """A test image, its class, and the runtime's prediction."""

    path: Path
    domain: str
    label: str
    prediction: Prediction

    @property
    def is_right(self) -> bool:
        """Whether the predicted class is the true one."""
        return self.prediction.label == self.label


@dataclass(frozen=True)
class DemoResult:
    """Figures of the demo, measured through the runtime.

    Attributes:
        domains, classes: names.
        fedapt, zero_shot: every test image under the fused model and under zero-shot CLIP.
        alone: under ridge regression on the images of the image's own party.
        closed: under the method adaptive-analytic.
        records: one per round.
        parity: parity of the export.
        summary: summary of the classification of test images with the fused model.
        model: the fused file.
        seconds: seconds of each stage.
    """

    domains: tuple[str, ...]
    classes: tuple[str, ...]
    fedapt: list[Classified]
    zero_shot: list[Classified]
    alone: list[Classified]
    closed: list[Classified]
    records: list[Record]
    parity: Parity
    summary: Summary
    model: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def accuracy(self, results: list[Classified]) -> dict[str, float]:
        """Accuracy in each domain."""
        return {
            domain: _share([r.is_right for r in results if r.domain == domain])
            for domain in self.domains
        }

    def tables(self) -> dict[str, list[Classified]]:
        """The results to compare, by name."""
        return {
            "zero-shot": self.zero_shot,
            "each party alone": self.alone,
            "FedAPT": self.fedapt,
            "adaptive analytic": self.closed,
        }

    def mean(self, results: list[Classified]) -> float:
        """Mean of the domains' shares."""
        shares = self.accuracy(results).values()
        return sum(shares) / len(shares)

    def routing(self) -> dict[str, dict[str, float]]:
        """Domain -> key -> share of the domain's images that are routed to the key."""
        return {
            domain: {
                key: _share(
                    [r.prediction.routed_to == key for r in self.fedapt if r.domain == domain]
                )
                for key in self.domains
            }
            for domain in self.domains
        }


def _share(values: list[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def check_out(out: Path) -> None:
    """Refuse a folder that holds other files than an earlier demo, such as a ROOT of images.

    Raises:
        UsageError: the folder has other files.
    """
    # names with a dot: temporary folders of a killed demo
    is_empty = not out.is_dir() or all(path.name.startswith(".") for path in out.iterdir())
    if not is_empty and not (out / "data" / "ATTRIBUTION.md").is_file():
        raise UsageError(
            where=out,
            found="a folder with other files",
            expected="a new folder, or that of an earlier demo",
            next_step="choose another `out`",
        )


def run_demo(out: Path, reporter: Reporter) -> DemoResult:
    """Run every stage below `out`; the next call continues an interrupted demo.

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
        train=TrainConfig(rounds=ROUNDS, router_lr=ROUTER_LR, schedule="cosine", evaluate_every=2),
    )
    closed = RunFolder(out / "closed")
    closed_config = dataclasses.replace(
        config, train=TrainConfig(method="adaptive-analytic", rounds=1)
    )
    for folder, settings in ((run, config), (closed, closed_config)):
        going_on = folder.config.is_file()
        train(settings, folder.path, resume=going_on, device="auto", reporter=reporter)
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
    closed_head = out / "closed.safetensors"
    asked = ExportSettings(data=data, head_only=True, parity_images=32)
    manifest = export_checkpoint(closed.checkpoint, closed_head, asked, reporter).manifest
    closed_predicted, _ = _classify(model, samples, out / "closed.jsonl", closed_head)
    alone = _classify_alone(closed, model, manifest, samples, out / "alone", backbone)
    return DemoResult(
        domains=images.domains,
        classes=images.classes,
        fedapt=predicted,
        zero_shot=zero_shot_predicted,
        alone=alone,
        closed=closed_predicted,
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


def _classify_alone(
    closed: RunFolder,
    model: Path,
    manifest: Manifest,
    images: list[_TestImage],
    folder: Path,
    backbone: Backbone,
) -> list[Classified]:
    """Predictions for every party's test images by a model trained without the others."""
    checkpoint = load_checkpoint(closed.checkpoint)
    method, learned = rebuild_method(checkpoint, backbone)
    if not isinstance(method, AdaptiveAnalytic):
        raise TypeError(f"adaptive-analytic is expected, not {method.title}")
    found = []
    for key, domain in enumerate(checkpoint.info.keys):
        head = folder / f"{domain}.safetensors"
        own = dataclasses.replace(manifest, domains=(domain,), temperature=1.0, unknown=None)
        write_head(method.alone(learned, key), own, head)
        members = [image for image in images if image.domain == domain]
        found += _classify(model, members, folder / f"{domain}.jsonl", head)[0]
    return found


def _classify(
    model: Path, images: list[_TestImage], out: Path, head: Path | None = None
) -> tuple[list[Classified], Summary]:
    classifier = Classifier.load(model, device="cpu", head=head)
    summary = classify_files(classifier, [str(image.path) for image in images], out)
    # read the runtime's file, so that the figures are those of the file
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    return [
        Classified(image.path, image.domain, image.label, Prediction(**row))
        for image, row in zip(images, rows, strict=True)
    ], summary
