"""Files to labels on a CPU: fedapt-runtime beside what people write and use instead.

    python benchmarks/peers.py [--photos N] [--only TEXT]

The same photos of Office-Caltech10 and the same image towers (`lite`, and ViT-B/32 with random
weights, whose speed does not depend on them), ten classes, every core of the machine. Turns
alternate, so that whatever else the machine does falls on all of them; figures are medians of
three. Each turn is a process of its own, in which everything is loaded and warm before it is timed.
A peer that would need more than a minute for a turn gets fewer photos, at least 64.

- fedapt: `classify_files`, exact preprocessing; float32 and int8 through the backend that a
  measurement takes, bfloat16 where the processor has it.
- OpenCLIP: its model and transform in torch, a DataLoader with a worker for each core; float32,
  bfloat16 autocast, and `torch.compile` where it works.
- ONNX Runtime: the same ONNX file in a loop, decoded by Pillow and OpenCLIP's transform.
- OpenVINO: the same ONNX file with OpenVINO's own preprocessing (resize inside its graph) and its
  asynchronous queue; decoded by Pillow.
- Ray Data around ONNX Runtime: `map_batches` to decode, a callable class to infer.

Agreement is the share of photos with the label of the exact float32 run of fedapt.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import RESULTS, publish
from photos import CLASSES, photos_root
from PIL import Image
from zero_shot import write_zero_shot

from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.prompted_clip import zero_shot_features
from fedapt_runtime import Classifier
from fedapt_runtime.backends.openvino import has_bfloat16
from fedapt_runtime.batch import classify_files
from fedapt_runtime.errors import first_line

BATCH, TURNS, CORES = 32, 3, os.cpu_count() or 1
MAX_SECONDS = 60.0
EXACT = "fedapt, exact, float32"
Labels = list[int]
Peer = Callable[[list[str]], Labels]
Turn = tuple[float, Labels]
Files = dict[str, Path]  # the model in fp32 and int8
Build = Callable[[Backbone, Files], contextlib.AbstractContextManager[Peer]]


@contextlib.contextmanager
def fedapt_runtime_peer(
    backbone: Backbone, files: Files, *, precision: str = "fp32", compute: str = "fp32"
) -> Iterator[Peer]:
    """`classify_files` with the backend that the runtime chooses."""
    classifier = Classifier.load(
        files[precision], device="cpu", performance_hint="throughput", compute=compute
    )
    names = classifier.manifest.classes

    def run(paths: list[str]) -> Labels:
        out = files["fp32"].with_name("rows.jsonl")
        classify_files(classifier, paths, out)
        rows = out.read_text("utf-8").splitlines()
        return [names.index(json.loads(row)["label"]) for row in rows]

    yield run


class Photos(torch.utils.data.Dataset[torch.Tensor]):
    """Photos through OpenCLIP's transform, as a DataLoader takes them."""

    def __init__(self, paths: list[str], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]))


def open_clip_transform(backbone: Backbone) -> Any:
    p = backbone.preprocessing
    return import_open_clip().image_transform(p.size[0], is_train=False, mean=p.mean, std=p.std)


@contextlib.contextmanager
def open_clip_peer(
    backbone: Backbone, files: Files, *, autocast: bool = False, compiled: bool = False
) -> Iterator[Peer]:
    """OpenCLIP in torch with a DataLoader."""
    transform, text = open_clip_transform(backbone), zero_shot_features(backbone, CLASSES)
    # as OpenCLIP creates it: autocast keeps the cast weights of parameters with gradients alone
    backbone.clip.requires_grad_(True)
    encode: Any = backbone.clip.encode_image
    if compiled:
        encode = torch.compile(encode)

    def run(paths: list[str]) -> Labels:
        loader = torch.utils.data.DataLoader(
            Photos(paths, transform), BATCH, num_workers=CORES, multiprocessing_context="fork"
        )
        labels: Labels = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for pixels in loader:
                features = encode(pixels, normalize=True)
                labels += (features.float() @ text.T).argmax(-1).tolist()
        return labels

    yield run


@contextlib.contextmanager
def onnxruntime_peer(backbone: Backbone, files: Files) -> Iterator[Peer]:
    """A loop: decode 32 photos, run the session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # heads are initializers that can be replaced
    session = onnxruntime.InferenceSession(
        files["fp32"], options, providers=["CPUExecutionProvider"]
    )
    load = backbone.preprocessing.image_to_array

    def run(paths: list[str]) -> Labels:
        labels: Labels = []
        for start in range(0, len(paths), BATCH):
            images = np.stack([load(Image.open(path)) for path in paths[start : start + BATCH]])
            labels += session.run(["logits"], {"images": images})[0].argmax(-1).tolist()
        return labels

    yield run


@contextlib.contextmanager
def openvino_peer(backbone: Backbone, files: Files) -> Iterator[Peer]:
    """OpenVINO's preprocessing resizes inside the graph; its queue keeps every core busy."""
    from fedapt_runtime.backends.openvino import import_openvino

    openvino = import_openvino()
    from openvino import AsyncInferQueue, Core
    from openvino.preprocess import PrePostProcessor, ResizeAlgorithm

    core = Core()
    graph = core.read_model(files["fp32"])
    height, width = backbone.preprocessing.size
    graph.reshape({"images": [1, height, width, 3]})
    steps = PrePostProcessor(graph)
    tensor = steps.input("images").tensor()
    tensor.set_layout(openvino.Layout("NHWC")).set_spatial_dynamic_shape()
    steps.input("images").model().set_layout(openvino.Layout("NHWC"))
    steps.input("images").preprocess().resize(ResizeAlgorithm.RESIZE_BICUBIC_PILLOW)
    hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(steps.build(), "CPU", hints)

    def run(paths: list[str]) -> Labels:
        labels: dict[int, int] = {}
        queue = AsyncInferQueue(compiled)
        queue.set_callback(
            lambda request, i: labels.update({i: int(request.get_tensor("logits").data.argmax())})
        )
        for i, path in enumerate(paths):
            image = Image.open(path).convert("RGB")
            short = min(image.size)  # the centre square, which the graph then resizes
            left, top = (image.width - short) // 2, (image.height - short) // 2
            square = image.crop((left, top, left + short, top + short))
            queue.start_async({"images": np.asarray(square)[None]}, i)
        queue.wait_all()
        return [labels[i] for i in range(len(paths))]

    yield run


@contextlib.contextmanager
def ray_peer(backbone: Backbone, files: Files) -> Iterator[Peer]:
    """Ray Data around ONNX Runtime, on the cores of this machine."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    load, name = backbone.preprocessing.image_to_array, str(files["fp32"])

    def decode(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "images": np.stack([load(Image.open(path)) for path in batch["path"]])}

    class Infer:
        """Holds a session with one thread."""

        def __init__(self) -> None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 3
            self.session = onnxruntime.InferenceSession(name, options)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            logits = self.session.run(["logits"], {"images": batch["images"]})[0]
            return {"index": batch["index"], "label": logits.argmax(-1)}

    def run(paths: list[str]) -> Labels:
        rows = ray.data.from_items([{"path": p, "index": i} for i, p in enumerate(paths)])
        found = (
            rows.repartition(max(1, len(paths) // BATCH))
            .map_batches(decode, batch_size=BATCH, num_cpus=0.4)
            .map_batches(
                Infer,
                batch_size=BATCH,
                num_cpus=0.5,
                compute=ray.data.ActorPoolStrategy(size=CORES),
            )
            .take_all()
        )
        return [int(row["label"]) for row in sorted(found, key=lambda row: row["index"])]

    try:
        yield run
    finally:
        ray.shutdown()


def time_turn(run: Peer, paths: list[str]) -> tuple[float, Labels]:
    """Images per second, and labels, of as many photos as a minute allows; 64 warm up, twice."""
    run(paths[: 2 * BATCH])
    started = time.perf_counter()
    run(paths[: 2 * BATCH])
    warm_up = time.perf_counter() - started
    chosen = paths[: max(2 * BATCH, int(2 * BATCH / warm_up * MAX_SECONDS))]
    started = time.perf_counter()
    labels = run(chosen)
    return len(chosen) / (time.perf_counter() - started), labels


def take_turn(row: str, tower: tuple[str, str], paths: list[str], folder: Path) -> Turn:
    """One turn of a peer, in this process."""
    name, pretrained = tower
    files = {"fp32": folder / f"{name}.onnx", "int8": folder / f"{name}_int8.onnx"}
    with PEERS[row](load_backbone(name, pretrained), files) as run:
        return time_turn(run, paths)


def take_turn_alone(*arguments: Any) -> Turn:
    """The same in a process of its own, so that no peer meets another's threads and memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(take_turn, *arguments).result()


PEERS: dict[str, Build] = {
    EXACT: fedapt_runtime_peer,
    "fedapt, exact, bfloat16": partial(fedapt_runtime_peer, compute="bf16"),
    "fedapt, exact, int8": partial(fedapt_runtime_peer, precision="int8"),
    "OpenCLIP, DataLoader, float32": open_clip_peer,
    "OpenCLIP, DataLoader, bfloat16": partial(open_clip_peer, autocast=True),
    "OpenCLIP, DataLoader, torch.compile": partial(open_clip_peer, compiled=True),
    "ONNX Runtime, loop with Pillow": onnxruntime_peer,
    "OpenVINO, its own preprocessing": openvino_peer,
    "Ray Data around ONNX Runtime": ray_peer,
}


def measure(
    tower: tuple[str, str], paths: list[str], folder: Path, only: str = ""
) -> dict[str, Any]:
    """All peers with one image tower, or those whose names contain `only`, and the exact one."""
    name, pretrained = tower
    backbone = load_backbone(name, pretrained)
    write_zero_shot(backbone, CLASSES, folder / f"{name}.onnx")
    write_zero_shot(backbone, CLASSES, folder / f"{name}_int8.onnx", paths)
    rates: dict[str, list[float]] = defaultdict(list)
    labels: dict[str, Labels] = {}
    failed: dict[str, str] = {}
    if not has_bfloat16():
        # torch would emulate it, ten times slower than float32
        why = "no bfloat16 on this processor"
        failed = {row: why for row in PEERS if row.endswith("bfloat16")}
    for _ in range(TURNS):
        for row in [row for row in PEERS if row not in failed and (only in row or row == EXACT)]:
            try:
                rate, labels[row] = take_turn_alone(row, tower, paths, folder)
            except Exception as error:  # of several libraries; the row says why it is empty
                failed[row] = first_line(error)
                print(f"{name}, {row}: {failed[row]}", flush=True)
                continue
            rates[row].append(rate)
            print(f"{name}, {row}: {rate:.1f} images/s", flush=True)
    rows: dict[str, dict[str, Any]] = {row: {"did_not_run": why} for row, why in failed.items()}
    for row in [row for row in rates if row not in failed]:
        same = [a == b for a, b in zip(labels[row], labels[EXACT], strict=False)]
        rows[row] = {
            "images_per_second": round(float(np.median(rates[row])), 1),
            "turns": [round(rate, 1) for rate in rates[row]],
            "photos": len(same),
            "agreement": round(sum(same) / len(same), 4),
        }
    return {"model": f"{name} {pretrained}".strip(), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=int, default=1000, metavar="N")
    parser.add_argument("--only", default="", metavar="TEXT", help="replace rows of the record")
    arguments = parser.parse_args()
    n_photos, only = arguments.photos, arguments.only
    everything = sorted(str(path) for path in photos_root().glob("*/*/*.jpg"))
    chosen = np.random.default_rng(0).permutation(len(everything))[:n_photos]
    paths = [everything[i] for i in chosen]  # in no order, as a slow peer gets the first ones
    with tempfile.TemporaryDirectory() as folder:
        models = [
            measure(("lite", ""), paths, Path(folder), only),
            measure(("ViT-B-32-quickgelu", "random"), paths, Path(folder), only),
        ]
    if only:
        before = json.loads((RESULTS / "peers.json").read_text("utf-8"))["models"]
        for model, known in zip(models, before, strict=True):
            model["rows"] = known["rows"] | model["rows"]
    publish("peers", {"photos": len(paths), "models": models})


if __name__ == "__main__":
    main()
