"""Files to labels on a CPU, beside the floor of this machine and the straightforward loop.

    python benchmarks/runtime.py [--photos N]

The floor is what all cores could do if nothing but decoding, preprocessing and the graph took time:
cores / (CPU seconds to decode one image + CPU seconds to infer one), both measured here with the
backend and compute precision that the runtime takes, the fastest here. The same floor of ONNX
Runtime in float32 stands beside it. The
straightforward loop decodes with Pillow, applies OpenCLIP's transform and runs the image tower and
a matrix product in torch, 32 images at a time, 128 of them. Photos of Office-Caltech10, which
have been read from the disk before; `random` weights for ViT-B/32, whose speed does not depend on
their values. Turns alternate, so that whatever else the machine does falls on all of them. Also:
what `--preprocess fast` changes, and a cold start.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from figures import publish
from photos import CLASSES, photos_root
from PIL import Image

import fedapt_runtime
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.prompted_clip import zero_shot_features
from fedapt.onnx.tower import read_tower
from fedapt_export.fuse import build_zero_shot_manifest, fuse
from fedapt_export.head import zero_shot_head
from fedapt_export.model_file import write_model
from fedapt_runtime import Classifier
from fedapt_runtime.backends.base import Backend
from fedapt_runtime.batch import classify_files
from fedapt_runtime.options import ClassifyOptions

PHOTOS, BATCH, TURNS, RUNS = 1000, 32, 3, 10


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
    """All figures of one model; medians of the turns."""
    backbone = load_backbone(name, pretrained)
    model = folder / f"{name}.onnx"
    graph = fuse(read_tower(backbone), zero_shot_head(backbone, CLASSES), backbone.label)
    write_model(graph, build_zero_shot_manifest(backbone, CLASSES), model)
    classifier = Classifier.load(model, device="cpu", performance_hint="throughput")
    few = paths[::5]
    load = backbone.preprocessing.load
    size, at_once = classifier.backend.default_batch, classifier.backend.in_flight
    batches = [np.stack([load(path) for path in few[:size]])] * (RUNS * at_once)

    known = Classifier.load(model, "onnxruntime", "cpu", performance_hint="throughput")

    def infer_all(backend: Backend = classifier.backend) -> None:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(backend.run, batches))

    infer_all()
    infer_all(known.backend)
    turns: dict[str, list[float]] = defaultdict(list)
    for turn in range(TURNS):
        for path in paths:
            Path(path).read_bytes()
        loop = straightforward(backbone, paths[: 4 * BATCH])
        infer = cpu_seconds(infer_all) / (size * len(batches))
        turns["loop"].append(loop)
        turns["infer_cpu_ms"].append(1e3 * infer)
        known_infer = cpu_seconds(lambda: infer_all(known.backend)) / (size * len(batches))
        for mode in ("exact", "fast")[:: 1 - 2 * (turn % 2)]:
            fast = mode == "fast"
            decode = cpu_seconds(lambda: [load(path, fast=fast) for path in few]) / len(few)  # noqa: B023
            floor = (os.cpu_count() or 1) / (decode + infer)
            known_floor = (os.cpu_count() or 1) / (decode + known_infer)
            turns[f"{mode} known_floor"].append(known_floor)
            out = folder / f"{mode} {turn}.jsonl"
            used = time.process_time()
            job = classify_files(classifier, paths, out, ClassifyOptions(fast=fast))
            turns[f"{mode} cpu_ms"].append(1e3 * (time.process_time() - used) / len(paths))
            turns[f"{mode} decode_cpu_ms"].append(1e3 * decode)
            turns[f"{mode} floor"].append(floor)
            turns[f"{mode} rate"].append(job.images_per_second)
            turns[f"{mode} of_the_floor"].append(job.images_per_second / floor)
            turns[f"{mode} of_the_loop"].append(job.images_per_second / loop)
    middle = {key: round(float(np.median(values)), 3) for key, values in turns.items()}
    report: dict[str, object] = {
        "model": f"{name} {pretrained}".strip(),
        "ran_on": classifier.ran_on,
        "batch": size,
    }
    for mode in ("exact", "fast"):
        report[mode] = {
            "decode_cpu_ms": middle[f"{mode} decode_cpu_ms"],
            "infer_cpu_ms": middle["infer_cpu_ms"],
            "files_to_labels_cpu_ms": middle[f"{mode} cpu_ms"],
            "floor_images_per_second": middle[f"{mode} floor"],
            "floor_of_onnxruntime_float32": middle[f"{mode} known_floor"],
            "images_per_second": middle[f"{mode} rate"],
            "of_the_floor": middle[f"{mode} of_the_floor"],
            "of_the_straightforward_loop": middle[f"{mode} of_the_loop"],
        }
    report["straightforward_images_per_second"] = middle["loop"]
    return report | {"drift_of_fast": drift(backbone, folder, paths)}


def cold_start(folder: Path, photo: str) -> dict[str, object]:
    """`classify` of one photo with `lite`, from process start to the end; medians of nine."""
    arguments = ["classify", str(folder / "lite.onnx"), photo]
    command = [sys.executable, "-m", "fedapt_runtime", *arguments]
    # the peak that the kernel reports of a child counts the parent's memory at the fork
    told = "from fedapt_runtime.cli import main; main(); print(open('/proc/self/status').read())"
    seconds, megabytes = [], []
    for _ in range(9):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
        done = subprocess.run(
            [sys.executable, "-c", told, *arguments], check=True, capture_output=True, text=True
        )
        (peak,) = (line for line in done.stdout.splitlines() if line.startswith("VmHWM:"))
        megabytes.append(int(peak.split()[1]) / 1024)
    package = Path(fedapt_runtime.__file__).parent
    size = sum(path.stat().st_size for path in package.rglob("*.py*") if path.suffix != ".pyc")
    return {
        "seconds": round(float(np.median(seconds)), 3),
        "resident_megabytes": round(float(np.median(megabytes)), 1),
        "installed_kilobytes_of_the_package": round(size / 1024, 1),
    }


def drift(backbone: Backbone, folder: Path, paths: list[str]) -> dict[str, float]:
    """How far fast decoding moves pixels and answers."""
    load = backbone.preprocessing.load
    gaps = [
        float(np.abs(load(path).astype(int) - load(path, fast=True)).mean()) for path in paths[::10]
    ]
    labels = []
    for mode in ("exact", "fast"):
        files = [folder / f"{mode} {turn}.jsonl" for turn in range(TURNS)]
        rows = [row for file in files for row in file.read_text("utf-8").splitlines()]
        labels.append([json.loads(row)["label"] for row in rows])
    same = sum(a == b for a, b in zip(*labels, strict=True)) / len(labels[0])
    return {"mean_pixel_difference": round(float(np.mean(gaps)), 3), "same_label": round(same, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=int, default=PHOTOS, metavar="N", help=f"[{PHOTOS}]")
    n_photos = parser.parse_args().photos
    everything = sorted(str(path) for path in photos_root().glob("*/*/*.jpg"))
    chosen = np.random.default_rng(0).permutation(len(everything))[:n_photos]
    paths = [everything[i] for i in sorted(chosen)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = [
            measure("lite", "", paths, folder),
            measure("ViT-B-32-quickgelu", "random", paths, folder),
        ]
        start = cold_start(folder, paths[0])
    report = {
        "photos": len(paths),
        "models": models,
        "cold_start_of_lite": start,
    }
    publish("runtime", report)


if __name__ == "__main__":
    main()
