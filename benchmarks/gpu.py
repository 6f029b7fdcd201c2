"""ViT-B/32 and lite on an NVIDIA GPU: the fused graph beside torch, as a share of the matrix peak.

    python benchmarks/gpu.py [--seconds 450] [--photos ROOT] [--device cpu]

Each row is written to benchmarks/results/gpu_CARD.json as soon as it is measured; a row that is
there is not measured again, so that a run that was stopped goes on. `random` weights for ViT-B/32:
speed does not depend on their values. Rows:

    peak           operations a second of torch's largest products, in float16 and float32
    copy           bytes a second from pageable and from pinned memory
    tower, fused   images a second of the bare image tower and of the fused graph in the runtime's
                   backend, from uint8 images in host memory to labels' logits in host memory
    torch, compile the tower in torch, eager and compiled, from images on the GPU
    operators      the same with the fused operators of ONNX Runtime (`export --operators`)
    exact          unit features and labels of the fused graph on the GPU against the CPU's
    files          photos to predictions, with the speed of decoding alone beside it
    decoding       decoding with preprocessing, by threads and by processes
    training       a round of 345 classes and 24 context tokens, on the GPU and on the CPU

`--device cpu` tries the script where there is no GPU; its figures are not kept.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from figures import RESULTS, machine
from many_classes import train_round
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from fedapt.core.files import write_text
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.image_tower import image_tower
from fedapt.onnx.tower import read_tower
from fedapt.onnx.weights import hold_weights
from fedapt_export.fuse import build_zero_shot_manifest, fuse
from fedapt_export.fused_operators import fuse_operators
from fedapt_export.half import to_half
from fedapt_export.head import zero_shot_head
from fedapt_export.model_file import write_model
from fedapt_runtime import Classifier
from fedapt_runtime.backends.choose import load_backend
from fedapt_runtime.backends.ort import import_onnxruntime, layout_options, open_session
from fedapt_runtime.decode_processes import decode_in_processes
from fedapt_runtime.manifest import ONNX, ONNXRUNTIME
from fedapt_runtime.options import LoadOptions
from fedapt_runtime.pipeline import decode_ahead

VIT = "vit-b-32"
MODELS = {VIT: ("ViT-B-32", "random"), "lite": ("lite", "")}
CLASSES = ("mug", "bike", "keyboard")
BATCHES = (1, 8, 64, 256, 1024)
SECONDS = 0.6  # of each figure, at least
Images = NDArray[np.uint8]


def images_per_second(work: Callable[[], object], n_images: int) -> float:
    """The speed of whole calls, after four that warm up."""
    for _ in range(4):
        work()
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < SECONDS or calls < 3:
        work()
        calls += 1
    return calls * n_images / elapsed


def noise(batch: int, size: tuple[int, int], seed: int = 0) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (batch, *size, 3), dtype=np.uint8)


class Bench:
    """The models in both precisions, made when a row first asks for them."""

    def __init__(self, device: str, folder: Path, photos: Path | None) -> None:
        self.device, self.folder, self.photos = device, folder, photos

    @functools.cache  # noqa: B019 (one object a process)
    def backbone(self, model: str, device: str = "cpu") -> Backbone:
        """A CLIP on a device."""
        return load_backbone(*MODELS[model], device)

    @functools.cache  # noqa: B019
    def fused(self, model: str, precision: str, operators: str = ONNX) -> Path:
        """The fused graph's file."""
        backbone = self.backbone(model)
        tower = self.tower(model, precision)
        if operators == ONNXRUNTIME:
            tower, _ = fuse_operators(tower)
        path = self.folder / f"{model}_{precision}_{operators}.onnx"
        head = zero_shot_head(backbone, CLASSES)
        manifest = replace(
            build_zero_shot_manifest(backbone, CLASSES), precision=precision, operators=operators
        )
        write_model(fuse(tower, head, MODELS[model][0]), manifest, path)
        return path

    @functools.cache  # noqa: B019
    def tower(self, model: str, precision: str = "fp32") -> onnx.ModelProto:
        """The image tower alone."""
        tower = read_tower(self.backbone(model))
        return tower if precision == "fp32" else to_half(tower, precision)

    @functools.cache  # noqa: B019
    def operations(self, model: str) -> int:
        """Floating-point operations of an image's products and convolutions."""
        backbone = self.backbone(model)
        images = torch.from_numpy(noise(1, backbone.preprocessing.size))
        torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see inside it
        try:
            with FlopCounterMode(display=False) as counter, torch.inference_mode():
                image_tower(backbone)(images)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        return int(counter.get_total_flops())


def measure_peak(bench: Bench) -> dict[str, float]:
    peaks = {}
    for dtype, size in ((torch.float16, 8192), (torch.float32, 4096)):
        size = size if bench.device == "cuda" else 512
        dtype = dtype if bench.device == "cuda" else torch.float32
        a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))

        def multiply(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            for _ in range(10):
                c = a @ b
            c[0, 0].item()

        peaks[str(dtype).removeprefix("torch.")] = images_per_second(multiply, 10) * 2 * size**3
    return peaks


def measure_copy(bench: Bench) -> dict[str, float]:
    images = torch.from_numpy(noise(1024, (224, 224)))
    speeds = {}
    for name, source in (("pageable", images), ("pinned", images.pin_memory())):
        target = torch.empty_like(source, device="cuda")

        def copy(source: torch.Tensor = source, target: torch.Tensor = target) -> None:
            target.copy_(source, non_blocking=True)
            torch.cuda.synchronize()

        speeds[name] = images_per_second(copy, images.nbytes)
    return speeds


def measure_fused(
    bench: Bench, model: str, precision: str, operators: str = ONNX
) -> dict[int, float]:
    """The runtime's backend, from images in host memory."""
    path = bench.fused(model, precision, operators)
    backend = load_backend(path, LoadOptions(device=bench.device))
    size = backend.manifest.preprocessing.size
    speeds = {}
    for batch in BATCHES:
        work = functools.partial(backend.run, noise(batch, size))
        speeds[batch] = images_per_second(work, batch)
    return speeds


def measure_tower(bench: Bench, model: str, precision: str) -> dict[str, dict[int, float]]:
    """The bare tower and the fused graph alike: one session, images and outputs on the GPU."""
    onnxruntime = import_onnxruntime()
    graphs = {
        "tower": hold_weights(bench.tower(model, precision)).SerializeToString(),
        "fused": str(bench.fused(model, precision)),
    }
    if model == VIT:
        graphs["operators"] = str(bench.fused(model, precision, ONNXRUNTIME))
    size = bench.backbone(model).preprocessing.size
    speeds: dict[str, dict[int, float]] = {}
    cuda = layout_options(precision, {node.op_type for node in bench.tower(model).graph.node})
    for name, graph in graphs.items():
        session = open_session(onnxruntime, graph, bench.device, name, cuda=cuda)
        speeds[name] = {}
        for batch in BATCHES[2:4]:
            binding = session.io_binding()
            images = noise(batch, size)
            value = onnxruntime.OrtValue.ortvalue_from_numpy(images, bench.device, 0)
            binding.bind_ortvalue_input("images", value)
            for output in session.get_outputs():
                binding.bind_output(output.name, bench.device)
            work = functools.partial(session.run_with_iobinding, binding)
            speeds[name][batch] = images_per_second(work, batch)
    return speeds


def measure_torch(bench: Bench, model: str, precision: str, compiled: bool) -> dict[int, float]:
    """The tower in torch, from images on the GPU."""
    tower = image_tower(bench.backbone(model, bench.device))
    dtype = torch.float16 if precision == "fp16" else torch.float32
    clip: Any = tower.clip.to(dtype)
    scale, shift = tower.scale.to(dtype), tower.shift.to(dtype)

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = clip.encode_image(pixels.to(dtype) * scale + shift)
        return features

    run = torch.compile(forward) if compiled else forward
    speeds = {}
    for batch in BATCHES[2:4] if compiled else BATCHES:
        pixels = torch.from_numpy(noise(batch, tower_size(bench, model))).to(bench.device)
        pixels = pixels.permute(0, 3, 1, 2)

        def work(pixels: torch.Tensor = pixels) -> None:
            with torch.inference_mode():
                run(pixels)[0, 0].item()

        speeds[batch] = images_per_second(work, batch)
    return speeds


def tower_size(bench: Bench, model: str) -> tuple[int, int]:
    return bench.backbone(model).preprocessing.size


def measure_exactness(
    bench: Bench, model: str, precision: str, operators: str = ONNX
) -> dict[str, float | int]:
    """The fused graph on the GPU against float32 on the CPU, at several sizes of batch."""
    reference = load_backend(bench.fused(model, "fp32"), LoadOptions(device="cpu"))
    path = bench.fused(model, precision, operators)
    found = load_backend(path, LoadOptions(device=bench.device))
    images = noise(70, tower_size(bench, model), seed=1)
    if bench.photos is not None:
        preprocessing = reference.manifest.preprocessing
        paths = sorted(bench.photos.rglob("*.jpg"))[:200]
        images = np.stack([preprocessing.load(path) for path in paths])
    expected = reference.run(images)
    difference, labels = 0.0, 0
    for batch in (1, 3, 64, len(images)):
        for _ in range(4):  # a size is recorded as a CUDA graph on its way
            rows = found.run(images[:batch])
        a, b = (unit(o.features[:batch]) for o in (rows, expected))
        difference = max(difference, float(np.abs(a - b).max()))
        labels = max(
            labels, int((rows.logits.argmax(1) != expected.logits[:batch].argmax(1)).sum())
        )
    return {"images": len(images), "unit_features_within": difference, "labels_changed": labels}


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    normalised: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normalised


def measure_files(bench: Bench, model: str, precision: str) -> dict[str, float]:
    """Photos a second: all of `classify`, and decoding with preprocessing alone on all cores."""
    if bench.photos is None:
        raise ValueError("no --photos")
    paths = sorted(bench.photos.rglob("*.jpg"))
    paths = (paths * (2000 // len(paths) + 1))[:2000]
    operators = ONNXRUNTIME if model == VIT else ONNX
    path = bench.fused(model, precision, operators)
    classifier = Classifier.load(path, device=bench.device)
    speeds = {}
    for name, fast in (("exact", False), ("fast", True)):
        started = time.perf_counter()
        rows = sum(p.error is None for p in classifier.stream(paths, fast=fast))
        speeds[name] = rows / (time.perf_counter() - started)
    started = time.perf_counter()
    cores = int(machine()["cores"])
    decoded = decode_ahead(paths, classifier.manifest.preprocessing, cores, 256)
    speeds["decoding_alone"] = sum(1 for _ in decoded) / (time.perf_counter() - started)
    started = time.perf_counter()
    rows = sum(p.error is None for p in classifier.stream(paths, decode_processes=cores))
    speeds["exact_in_processes"] = rows / (time.perf_counter() - started)
    return speeds


def measure_decoding(bench: Bench) -> dict[str, dict[int, float]]:
    """Photos a second, decoded and preprocessed in threads of one process, and in processes."""
    if bench.photos is None:
        raise ValueError("no --photos")
    preprocessing = bench.backbone("lite").preprocessing
    paths = sorted(bench.photos.rglob("*.jpg"))[:100] * 20
    cores = int(machine()["cores"])
    speeds: dict[str, dict[int, float]] = {"threads": {}, "processes": {}}
    for n in sorted({1, 2, 4, 8, cores}):
        started = time.perf_counter()
        decoded = sum(1 for _ in decode_ahead(paths, preprocessing, n, 256))
        speeds["threads"][n] = decoded / (time.perf_counter() - started)
    for n in sorted({1, 8, cores}):
        started = time.perf_counter()  # the start of the processes counts
        decoded = sum(1 for _ in decode_in_processes(paths, preprocessing, n, 256))
        speeds["processes"][n] = decoded / (time.perf_counter() - started)
    return speeds


def measure_training(device: str) -> dict[str, float]:
    """Seconds of a round of six clients with one step of 256 images each; peak memory on a GPU."""
    train_round(device)  # the first one allocates
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # of other rows
    report = {"seconds": train_round(device)}
    if device == "cuda":
        report["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return report


def rows(bench: Bench) -> dict[str, Callable[[], Any]]:
    """Name -> what measures it, the most telling first."""
    part = functools.partial
    table: dict[str, Callable[[], Any]] = {"peak": part(measure_peak, bench)}
    if bench.device == "cuda":
        table["copy"] = part(measure_copy, bench)
    for model in MODELS:
        for precision in ("fp16", "fp32"):
            key = f"{model} {precision}"
            table[f"fused {key}"] = part(measure_fused, bench, model, precision)
            table[f"tower {key}"] = part(measure_tower, bench, model, precision)
            table[f"exact {key}"] = part(measure_exactness, bench, model, precision)
            if model == VIT:
                fused = (bench, model, precision, ONNXRUNTIME)
                table[f"operators {key}"] = part(measure_fused, *fused)
                table[f"exact operators {key}"] = part(measure_exactness, *fused)
            table[f"torch {key}"] = part(measure_torch, bench, model, precision, False)
    if bench.photos is not None:
        table["decoding"] = part(measure_decoding, bench)
        for model in MODELS:
            table[f"files {model} fp16"] = part(measure_files, bench, model, "fp16")
    for model in MODELS:
        table[f"compile {model} fp16"] = part(measure_torch, bench, model, "fp16", True)
    for device in dict.fromkeys((bench.device, "cpu")):
        table[f"training {device}"] = part(measure_training, device)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=450, help="begin no row after so many")
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs, for files to labels")
    options = parser.parse_args()
    begun = time.perf_counter()
    card = torch.cuda.get_device_name() if options.device == "cuda" else "no gpu"
    path = RESULTS / f"gpu_{re.sub('[^a-z0-9]+', '_', card.lower())}.json"
    report: dict[str, Any] = {"command": "python benchmarks/gpu.py", "gpu": card, "rows": {}}
    if path.is_file():
        report = json.loads(path.read_text("utf-8"))
    report["machine"] = machine()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(options.device, Path(temporary), options.photos)
        if "operations_per_image" not in report:
            report["operations_per_image"] = {m: bench.operations(m) for m in MODELS}
        for name, work in rows(bench).items():
            if name in report["rows"]:
                continue
            if time.perf_counter() - begun > options.seconds:
                print(f"{name}: no time left; run again to go on", flush=True)
                continue
            started = time.perf_counter()
            try:
                found = work()
            except Exception as error:  # a row that fails must not cost the others
                print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
                continue
            report["rows"][name] = found
            print(
                f"[{time.perf_counter() - started:5.1f} s] {name}: {json.dumps(found)}", flush=True
            )
            if options.device == "cuda":
                write_text(path, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
