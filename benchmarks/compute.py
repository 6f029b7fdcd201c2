"""`lite` in each precision that this processor computes: labels and features of every photo.

    python benchmarks/compute.py [--models DIR]

A model with the recommended settings, and all photos of Office-Caltech10. float32 in ONNX Runtime
is the reference. Beside it: float32 in OpenVINO, bfloat16 in OpenVINO where the processor has it,
the emulation of bfloat16 that an export runs, and int8 in both backends. Features are unit vectors.
The manifest's count is of the export's own test images. Images/s are those of the graph, with a
batch on each core: medians of turns that alternate.
"""

from __future__ import annotations

import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from deployed import deployed_models
from figures import publish
from numpy.typing import NDArray
from photos import photos_root

from fedapt.data.folders import scan_folders
from fedapt.model.backbone import load_backbone
from fedapt.onnx.tower import read_tower
from fedapt.onnx.weights import open_model
from fedapt_export.compute import emulate_bfloat16_products
from fedapt_export.outputs import unit_difference
from fedapt_runtime import Classifier
from fedapt_runtime.backends.base import Backend
from fedapt_runtime.backends.openvino import has_bfloat16
from fedapt_runtime.pipeline import decode_ahead

TURNS, RUNS, BATCH = 5, 10, 8
Features = NDArray[np.float32]


def load_backends(models: dict[str, Path]) -> dict[str, Backend]:
    """By the name of the row; the reference comes first."""

    def load(precision: str, backend: str, compute: str = "fp32") -> Backend:
        classifier = Classifier.load(
            models[precision], backend, "cpu", performance_hint="throughput", compute=compute
        )
        return classifier.backend

    rows = {
        "float32, ONNX Runtime": load("fp32", "onnxruntime"),
        "float32, OpenVINO": load("fp32", "openvino"),
    }
    if has_bfloat16():
        rows["bfloat16, OpenVINO"] = load("fp32", "openvino", "bf16")
    return rows | {
        "int8, ONNX Runtime": load("int8", "onnxruntime"),
        "int8, OpenVINO": load("int8", "openvino"),
    }


def run_all(backend: Backend, images: NDArray[np.uint8]) -> tuple[NDArray[np.intp], Features]:
    """Labels and features of all images."""
    found = [backend.run(images[i : i + 32]) for i in range(0, len(images), 32)]
    labels = np.concatenate([outputs.logits.argmax(-1) for outputs in found])
    return labels, np.concatenate([outputs.features for outputs in found])


def emulate(images: NDArray[np.uint8]) -> Features:
    """Features of the emulation of bfloat16 products."""
    tower = emulate_bfloat16_products(read_tower(load_backbone("lite")))
    session = open_model(tower, "cpu", "the emulation")
    batches = [images[i : i + 32] for i in range(0, len(images), 32)]
    return np.concatenate([session.run(None, {"images": batch})[0] for batch in batches])


def images_per_second(backend: Backend, images: NDArray[np.uint8]) -> float:
    batches = [images[:BATCH]] * (RUNS * backend.in_flight)
    started = time.perf_counter()
    with ThreadPoolExecutor(backend.in_flight) as pool:
        list(pool.map(backend.run, batches))
    return len(batches) * BATCH / (time.perf_counter() - started)


def main() -> None:
    root = photos_root()
    samples = [s for found in scan_folders(root).samples.values() for s in found]
    with deployed_models(__doc__) as models:
        backends = load_backends(models)
    reference, *_ = backends.values()
    preprocessing = reference.manifest.preprocessing
    decoded = decode_ahead([root / s.path for s in samples], preprocessing, workers=2, ahead=64)
    images = np.stack([item.pixels for item in decoded if item.pixels is not None])
    truth = np.array([sample.label for sample in samples])
    domains = np.array([Path(sample.path).parts[0] for sample in samples])
    found = {name: run_all(backend, images) for name, backend in backends.items()}
    (known, known_features), *_ = found.values()
    rates: dict[str, list[float]] = defaultdict(list)
    for _ in range(TURNS):
        for name, backend in backends.items():
            rates[name].append(images_per_second(backend, images))
    rows: dict[str, dict[str, Any]] = {}
    emulated = emulate(images)
    for name, (labels, features) in found.items():
        rows[name] = {
            "changed_labels": int((labels != known).sum()),
            "feature_difference": unit_difference(features, known_features),
            "accuracy": {
                d: float((labels == truth)[domains == d].mean()) for d in np.unique(domains)
            },
            "images_per_second": round(float(np.median(rates[name])), 1),
        }
        if name.startswith("bfloat16"):
            rows[name]["feature_difference_from_the_emulation"] = unit_difference(
                features, emulated
            )
    report = {
        "images": len(images),
        "rows": rows,
        "emulation": {
            "feature_difference": unit_difference(emulated, known_features),
            "manifest": reference.manifest.parity["computed_in"],
        },
    }
    publish("compute", report)


if __name__ == "__main__":
    main()
