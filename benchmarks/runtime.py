"""Files to labels on a CPU: in each precision, beside its floor and the straightforward loop.

    python benchmarks/runtime.py [--photos N]

The floor of a precision is what all cores could do if nothing but decoding, preprocessing and the
graph took time: cores / (CPU seconds to decode one image + CPU seconds to infer one), with the
backend that the runtime takes for it. The highest is the floor of this machine. The floor of ONNX
Runtime in float32 stands beside them. The straightforward loop decodes with Pillow, applies
OpenCLIP's transform and runs the image tower and a matrix product in torch, 32 images at a time,
128 of them. Photos of Office-Caltech10, which have been read from the disk before; `random` weights
for ViT-B/32, whose speed does not depend on their values. Turns alternate, so that whatever else
the machine does falls on all of them; figures are medians. Agreement is the share of photos with
the label of float32. Also: what `--preprocess fast` changes, and a cold start.
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
from typing import Any

import numpy as np
import torch
from figures import publish
from numpy.typing import NDArray
from photos import CLASSES, photos_root
from PIL import Image
from zero_shot import write_zero_shot

import fedapt_runtime
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.prompted_clip import zero_shot_features
from fedapt_runtime import Classifier
from fedapt_runtime.backends.base import Backend
from fedapt_runtime.backends.openvino import has_bfloat16
from fedapt_runtime.batch import classify_files
from fedapt_runtime.options import ClassifyOptions

PHOTOS, BATCH, TURNS, RUNS = 1000, 32, 3, 40
MODES = {"exact": False, "fast": True}
KNOWN = "ONNX Runtime float32"
Loaded = dict[str, Classifier]


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


def load_classifiers(name: str, backbone: Backbone, paths: list[str], folder: Path) -> Loaded:
    """A classifier for each precision of this machine."""
    model = write_zero_shot(backbone, CLASSES, folder / f"{name}.onnx")
    int8 = write_zero_shot(backbone, CLASSES, folder / f"{name}_int8.onnx", paths)
    loaded = {"float32": load_for_cpu(model)}
    if has_bfloat16():
        loaded["bfloat16"] = load_for_cpu(model, compute="bf16")
    loaded["int8"] = load_for_cpu(int8)
    return loaded | {KNOWN: load_for_cpu(model, "onnxruntime")}


def load_for_cpu(model: Path, backend: str = "auto", compute: str = "fp32") -> Classifier:
    return Classifier.load(model, backend, "cpu", performance_hint="throughput", compute=compute)


def infer_cpu_ms(backend: Backend, images: NDArray[np.uint8]) -> float:
    """CPU milliseconds of the graph for an image, every core busy."""
    n_batches = RUNS * backend.in_flight
    batches = [images[: backend.default_batch]] * n_batches

    def infer_all() -> None:
        with ThreadPoolExecutor(backend.in_flight) as pool:
            list(pool.map(backend.run, batches))

    return 1e3 * cpu_seconds(infer_all) / (n_batches * len(batches[0]))


def measure(name: str, pretrained: str, paths: list[str], folder: Path) -> dict[str, object]:
    """All figures of one model; medians of the turns."""
    backbone = load_backbone(name, pretrained)
    loaded = load_classifiers(name, backbone, paths, folder)
    load, cores = backbone.preprocessing.load, os.cpu_count() or 1
    images = np.stack([load(path) for path in paths[::30][:32]])
    for classifier in loaded.values():
        infer_cpu_ms(classifier.backend, images)
    turns: dict[tuple[str, ...], list[float]] = defaultdict(list)
    labels: dict[tuple[str, str], list[str]] = {}
    for _ in range(TURNS):
        for path in paths:
            Path(path).read_bytes()
        turns["loop",].append(loop := straightforward(backbone, paths[: 4 * BATCH]))
        decode = {
            mode: 1e3 * cpu_seconds(lambda: [load(path, fast=fast) for path in paths]) / len(paths)  # noqa: B023
            for mode, fast in MODES.items()
        }
        for precision, classifier in loaded.items():
            infer = infer_cpu_ms(classifier.backend, images)
            turns[precision, "infer_cpu_ms"].append(infer)
            for mode, fast in MODES.items():
                floor = 1e3 * cores / (decode[mode] + infer)
                turns[precision, mode, "floor_images_per_second"].append(floor)
                if precision == KNOWN:
                    continue
                out, used = folder / "rows.jsonl", time.process_time()
                job = classify_files(classifier, paths, out, ClassifyOptions(fast=fast))
                used, rate = time.process_time() - used, job.images_per_second
                rows = out.read_text("utf-8").splitlines()
                labels[precision, mode] = [json.loads(row)["label"] for row in rows]
                for figure, value in {
                    "decode_cpu_ms": decode[mode],
                    "files_to_labels_cpu_ms": 1e3 * used / len(paths),
                    "images_per_second": rate,
                    "of_the_floor": rate / floor,
                    "of_the_straightforward_loop": rate / loop,
                }.items():
                    turns[precision, mode, figure].append(value)
    report: dict[str, Any] = {"model": f"{name} {pretrained}".strip()}
    for key, values in turns.items():
        place = report
        for part in key[:-1]:
            place = place.setdefault(part, {})
        place[key[-1]] = round(float(np.median(values)), 3)
    report["straightforward_images_per_second"] = report.pop("loop")
    for (precision, mode), found in labels.items():
        changed = sum(a != b for a, b in zip(found, labels["float32", "exact"], strict=True))
        report[precision][mode]["agreement"] = round(1 - changed / len(paths), 4)
        report[precision]["ran_on"] = loaded[precision].ran_on
        report[precision]["batch"] = loaded[precision].backend.default_batch
    floors = {p: report[p]["exact"]["floor_images_per_second"] for p in loaded if p != KNOWN}
    report["machines_floor"] = max(floors, key=lambda precision: floors[precision])
    gaps = [np.abs(load(path).astype(int) - load(path, fast=True)).mean() for path in paths[::10]]
    return report | {"mean_pixel_difference_of_fast": round(float(np.mean(gaps)), 3)}


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
