"""Files to labels on a CPU, beside the floor of this machine and the straightforward loop.

    python benchmarks/runtime.py

The floor is what all cores could do if nothing but decoding, preprocessing and the graph took time:
cores / (CPU seconds to decode one image + CPU seconds to infer one), both measured here. The
straightforward loop decodes with Pillow, applies OpenCLIP's transform and runs the image tower and
a matrix product in torch, 32 images at a time. 1 000 photos of Office-Caltech10; `random` weights
for ViT-B/32, whose speed does not depend on their values. Also: what `--preprocess fast` changes.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from photos import RESULTS, machine, photos_root
from PIL import Image

from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.image_encoder import read_tower
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.prompted_clip import zero_shot_features
from fedapt_export.export import write_model
from fedapt_export.fuse import build_zero_shot_manifest, fuse
from fedapt_export.head import zero_shot_head
from fedapt_runtime import Classifier
from fedapt_runtime.batch import classify_files

CLASSES = (
    "back pack",
    "bike",
    "calculator",
    "headphones",
    "keyboard",
    "laptop computer",
    "monitor",
    "mouse",
    "mug",
    "projector",
)
PHOTOS, BATCH = 1000, 32


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of all threads."""
    before = time.process_time()
    work()
    return time.process_time() - before


def straightforward(backbone: Backbone, paths: list[str]) -> float:
    """Images per second of the straightforward loop."""
    p = backbone.preprocessing
    transform = import_open_clip().image_transform(
        p.size[0], is_train=False, mean=p.mean, std=p.std
    )
    text = zero_shot_features(backbone, CLASSES)

    def classify(batch: list[str]) -> torch.Tensor:
        with torch.inference_mode():
            pixels = torch.stack([transform(Image.open(path)) for path in batch])
            features = backbone.clip.encode_image(pixels, normalize=True)  # type: ignore[operator]
            return (features @ text.T).argmax(-1)

    classify(paths[:BATCH])
    started = time.perf_counter()
    for start in range(0, len(paths), BATCH):
        classify(paths[start : start + BATCH])
    return len(paths) / (time.perf_counter() - started)


def measure(name: str, pretrained: str, paths: list[str], folder: Path) -> dict[str, object]:
    """All figures of one model."""
    backbone = load_backbone(name, pretrained)
    model = folder / f"{name}.onnx"
    graph = fuse(read_tower(backbone), zero_shot_head(backbone, CLASSES), backbone.label)
    write_model(graph, build_zero_shot_manifest(backbone, CLASSES), model)
    classifier = Classifier.load(model, device="cpu")
    few = paths[:200]
    load = backbone.preprocessing.load
    pixels = np.stack([load(path) for path in few[:BATCH]])
    classifier.backend.run(pixels)
    infer = cpu_seconds(lambda: [classifier.backend.run(pixels) for _ in range(5)]) / (5 * BATCH)
    report: dict[str, object] = {"model": f"{name} {pretrained}".strip()}
    loop = straightforward(backbone, few)
    for mode in ("exact", "fast"):
        fast = mode == "fast"
        decode = cpu_seconds(lambda: [load(path, fast=fast) for path in few]) / len(few)  # noqa: B023
        floor = (os.cpu_count() or 1) / (decode + infer)
        out = folder / f"{mode}.jsonl"
        rate = classify_files(classifier, paths, out, batch_size=BATCH, fast=fast).images_per_second
        report[mode] = {
            "decode_cpu_ms": round(1e3 * decode, 2),
            "infer_cpu_ms": round(1e3 * infer, 2),
            "floor_images_per_second": round(floor, 1),
            "images_per_second": round(rate, 1),
            "of_the_floor": round(rate / floor, 3),
            "of_the_straightforward_loop": round(rate / loop, 2),
        }
    report["straightforward_images_per_second"] = round(loop, 1)
    return report | {"drift_of_fast": drift(backbone, folder, paths)}


def drift(backbone: Backbone, folder: Path, paths: list[str]) -> dict[str, float]:
    """How far fast decoding moves pixels and answers."""
    load = backbone.preprocessing.load
    gaps = [
        float(np.abs(load(path).astype(int) - load(path, fast=True)).mean()) for path in paths[::10]
    ]
    labels = []
    for mode in ("exact", "fast"):
        rows = (folder / f"{mode}.jsonl").read_text("utf-8").splitlines()
        labels.append([json.loads(row)["label"] for row in rows])
    same = sum(a == b for a, b in zip(*labels, strict=True)) / len(labels[0])
    return {"mean_pixel_difference": round(float(np.mean(gaps)), 3), "same_label": round(same, 4)}


def main() -> None:
    everything = sorted(str(path) for path in photos_root().glob("*/*/*.jpg"))
    chosen = np.random.default_rng(0).permutation(len(everything))[:PHOTOS]
    paths = [everything[i] for i in sorted(chosen)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = [
            measure("lite", "", paths, folder),
            measure("ViT-B-32-quickgelu", "random", paths, folder),
        ]
    report = {
        "command": "python benchmarks/runtime.py",
        "photos": len(paths),
        "models": models,
        "machine": machine(),
    }
    print(json.dumps(report, indent=2))
    (RESULTS / "runtime.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
