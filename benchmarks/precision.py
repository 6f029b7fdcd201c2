"""What each precision of the image tower costs and gains on a CPU, and where int8 loses.

    python benchmarks/precision.py

`lite` on all test photos of Office-Caltech10 under a trained FedAPT head: top-1 accuracy, labels
that change, unit features, images per second. int8 in several cuts: how many of the first
convolutions stay in float32. Then ViT-B/32 (`random` weights: speed does not depend on their
values) in float32 and int8. Speeds are the best of interleaved turns, since machines are shared.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from figures import publish
from photos import ROOT, photos_root

from fedapt.core.config import read_config
from fedapt.core.report import Reporter
from fedapt.data.folders import scan_folders
from fedapt.data.splits import split_as_configured
from fedapt.model.backbone import load_backbone
from fedapt.model.checkpoint import load_checkpoint
from fedapt.onnx.tower import read_tower
from fedapt.onnx.weights import open_model
from fedapt.run.folder import RunFolder
from fedapt.run.train import train
from fedapt_export.fuse import fuse
from fedapt_export.head import zero_shot_head
from fedapt_export.images import collect_calibration
from fedapt_export.int8 import to_int8
from fedapt_export.precision import STORED, compare_with_float32, lower_precision, to_runnable
from fedapt_runtime.pipeline import decode_ahead

CUTS = (0, 1, 3, 5, 10)
CLASSES = ("mug", "bike", "keyboard")


def accuracy(model: onnx.ModelProto, images: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy of a whole graph."""
    session = open_model(model, "cpu", "a graph")
    parts = [
        session.run(["logits"], {"images": images[i : i + 32]})[0]
        for i in range(0, len(images), 32)
    ]
    return float((np.concatenate(parts).argmax(-1) == labels).mean())


def measure_lite(root: Path, folder: Path) -> dict[str, Any]:
    """Every precision of `lite` under a trained head."""
    config = read_config(ROOT / "configs" / "office_caltech10.toml", [], {"data.root": str(root)})
    run = RunFolder(folder / "run")
    train(config, run.path, resume=False, device="cpu", reporter=Reporter())
    checkpoint = load_checkpoint(run.checkpoint)
    backbone = load_backbone("lite")
    head, tower = checkpoint.to_global_model(backbone).head, read_tower(backbone)
    calibration, source = collect_calibration(checkpoint, root, 128)
    split = split_as_configured(scan_folders(root), config.data)
    samples = [sample for samples in split.test.values() for sample in samples]
    decoded = decode_ahead(
        [root / sample.path for sample in samples], backbone.preprocessing, workers=2, ahead=64
    )
    images = np.stack([item.pixels for item in decoded if item.pixels is not None])
    labels = np.array([sample.label for sample in samples])
    reference = fuse(tower, head, "lite")
    rows: dict[str, Any] = {"fp32": {"accuracy": accuracy(reference, images, labels)}}
    towers: dict[str, tuple[str, onnx.ModelProto]] = {
        name: (name, lower_precision(tower, name)) for name in ("fp16", "bf16", STORED)
    }
    for cut in CUTS:
        name = f"int8, first {cut} convolutions in float32"
        cut_tower = to_int8(tower, calibration, symmetric=False, float_convolutions=cut)
        towers[name] = ("int8", cut_tower)
    for name, (precision, lowered) in towers.items():
        model = fuse(lowered, head, "lite")
        report = compare_with_float32(reference, model, precision, images).to_dict()
        report["accuracy"] = accuracy(to_runnable(model, precision), images, labels)
        rows[name] = report
        print(name, {k: v for k, v in report.items() if k != "precision"}, flush=True)
    return {"calibration": source, "images": len(images), "rows": rows}


def measure_vit() -> dict[str, Any]:
    """Speed of ViT-B/32 in int8."""
    backbone = load_backbone("ViT-B-32", "random")
    noise = np.random.default_rng(0).integers(0, 256, (32, 224, 224, 3), dtype=np.uint8)
    tower, head = read_tower(backbone), zero_shot_head(backbone, CLASSES)
    lowered = to_int8(tower, noise[:16], symmetric=False)
    reference, model = (fuse(t, head, "ViT-B-32") for t in (tower, lowered))
    report = compare_with_float32(reference, model, "int8", noise)
    fields = ("bytes", "fp32_bytes", "images_per_s", "fp32_images_per_s")
    found = {name: value for name, value in report.to_dict().items() if name in fields}
    found["times_fp32"] = (report.images_per_s or 0) / report.fp32_images_per_s
    print("ViT-B/32 int8", found, flush=True)
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lite = measure_lite(photos_root(), Path(folder))
    report = {
        "lite": lite,
        "ViT-B-32, random weights, int8": measure_vit(),
    }
    publish("precision", report)


if __name__ == "__main__":
    main()
