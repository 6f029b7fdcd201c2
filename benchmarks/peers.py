"""Files to labels on a CPU: fedapt-runtime beside what people write and use instead.

    python benchmarks/peers.py [--photos N]

The same photos of Office-Caltech10 and the same image towers (`lite`, and ViT-B/32 with random
weights, whose speed does not depend on them), ten classes, every core of the machine, one after the
other in one process, the best of two turns each. Everything is loaded and warm before it is timed.

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from figures import publish
from photos import CLASSES, photos_root
from PIL import Image

from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.prompted_clip import zero_shot_features
from fedapt.onnx.tower import read_tower
from fedapt_export.fuse import build_zero_shot_manifest, fuse
from fedapt_export.head import zero_shot_head
from fedapt_export.model_file import write_model
from fedapt_export.precision import lower_precision
from fedapt_runtime import Classifier
from fedapt_runtime.backends.choose import list_candidates
from fedapt_runtime.batch import classify_files
from fedapt_runtime.errors import first_line

BATCH, TURNS, CORES = 32, 2, os.cpu_count() or 1
Labels = list[int]
Peer = Callable[[list[str]], Labels]


def fedapt_runtime_peer(model: Path, folder: Path, compute: str = "fp32") -> tuple[Peer, str]:
    """`classify_files` with what the runtime chooses, and what that is."""
    classifier = Classifier.load(
        model, device="cpu", performance_hint="throughput", compute=compute
    )
    names = classifier.manifest.classes

    def run(paths: list[str]) -> Labels:
        out = folder / "rows.jsonl"
        classify_files(classifier, paths, out)
        rows = out.read_text("utf-8").splitlines()
        return [names.index(json.loads(row)["label"]) for row in rows]

    return run, classifier.description


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


def open_clip_peer(backbone: Backbone, *, autocast: bool = False, compiled: bool = False) -> Peer:
    """OpenCLIP in torch with a DataLoader."""
    transform, text = open_clip_transform(backbone), zero_shot_features(backbone, CLASSES)
    encode: Any = backbone.clip.encode_image
    if compiled:
        encode = torch.compile(encode)

    def run(paths: list[str]) -> Labels:
        loader = torch.utils.data.DataLoader(Photos(paths, transform), BATCH, num_workers=CORES)
        labels: Labels = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for pixels in loader:
                features = encode(pixels, normalize=True)
                labels += (features.float() @ text.T).argmax(-1).tolist()
        return labels

    return run


def onnxruntime_peer(model: Path, backbone: Backbone) -> Peer:
    """A loop: decode 32 photos, run the session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # heads are initializers that can be replaced
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    load = backbone.preprocessing.image_to_array

    def run(paths: list[str]) -> Labels:
        labels: Labels = []
        for start in range(0, len(paths), BATCH):
            images = np.stack([load(Image.open(path)) for path in paths[start : start + BATCH]])
            labels += session.run(["logits"], {"images": images})[0].argmax(-1).tolist()
        return labels

    return run


def openvino_peer(model: Path, backbone: Backbone) -> Peer:
    """OpenVINO's preprocessing resizes inside the graph; its queue keeps every core busy."""
    from fedapt_runtime.backends.openvino import import_openvino

    openvino = import_openvino()
    from openvino import AsyncInferQueue, Core
    from openvino.preprocess import PrePostProcessor, ResizeAlgorithm

    core = Core()
    graph = core.read_model(model)
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

    return run


@contextlib.contextmanager
def ray_peer(model: Path, backbone: Backbone) -> Iterator[Peer]:
    """Ray Data around ONNX Runtime, on the cores of this machine."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    load, name = backbone.preprocessing.image_to_array, str(model)

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


def time_peer(run: Peer, paths: list[str], exact: Labels | None) -> dict[str, Any]:
    """Images per second, the best of the turns, and agreement."""
    run(paths[: 2 * BATCH])
    best, labels = 0.0, list[int]()
    for _ in range(TURNS):
        started = time.perf_counter()
        labels = run(paths)
        best = max(best, len(paths) / (time.perf_counter() - started))
    same = np.mean(np.array(labels) == np.array(labels if exact is None else exact))
    return {"images_per_second": round(best, 1), "agreement": round(float(same), 4)}


def measure(name: str, pretrained: str, paths: list[str], folder: Path) -> dict[str, Any]:
    """All peers with one image tower."""
    backbone = load_backbone(name, pretrained)
    model, int8 = folder / f"{name}.onnx", folder / f"{name}-int8.onnx"
    tower, head = read_tower(backbone), zero_shot_head(backbone, CLASSES)
    manifest = build_zero_shot_manifest(backbone, CLASSES)
    write_model(fuse(tower, head, backbone.label), manifest, model)
    scales = np.stack([backbone.preprocessing.load(path) for path in paths[:64]])
    lowered: onnx.ModelProto = lower_precision(tower, "int8", scales)
    write_model(fuse(lowered, head, backbone.label), manifest, int8)
    rows: dict[str, Any] = {}

    run, chosen = fedapt_runtime_peer(model, folder)
    rows["fedapt, exact, float32"] = time_peer(run, paths, None) | {"ran": chosen}
    exact = run(paths)

    def add(row: str, build: Callable[[], Peer]) -> None:
        try:
            rows[row] = time_peer(build(), paths, exact)
        except Exception as error:  # of several libraries; the row says why it is empty
            rows[row] = {"did_not_run": first_line(error)}
        print(row, rows[row], flush=True)

    def add_bf16(row: str, build: Callable[[], Peer]) -> None:
        if has_bf16:
            add(row, build)
        else:  # torch would emulate it, ten times slower than float32
            rows[row] = {"did_not_run": "no bfloat16 on this processor"}

    print(rows, flush=True)
    has_bf16 = any(c.compute == "bf16" for c in list_candidates(model, "auto", "cpu", "auto"))
    add_bf16("fedapt, exact, bfloat16", lambda: fedapt_runtime_peer(model, folder, "bf16")[0])
    run, chosen = fedapt_runtime_peer(int8, folder)
    rows["fedapt, exact, int8"] = time_peer(run, paths, exact) | {"ran": chosen}
    print(rows, flush=True)
    add("OpenCLIP, DataLoader, float32", lambda: open_clip_peer(backbone))
    add_bf16("OpenCLIP, DataLoader, bfloat16", lambda: open_clip_peer(backbone, autocast=True))
    add("OpenCLIP, DataLoader, torch.compile", lambda: open_clip_peer(backbone, compiled=True))
    add("ONNX Runtime, loop with Pillow", lambda: onnxruntime_peer(model, backbone))
    add("OpenVINO, its own preprocessing", lambda: openvino_peer(model, backbone))
    with ray_peer(model, backbone) as run:
        rows["Ray Data around ONNX Runtime"] = time_peer(run, paths, exact)
    return {"model": f"{name} {pretrained}".strip(), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=int, default=1000, metavar="N")
    n_photos = parser.parse_args().photos
    everything = sorted(str(path) for path in photos_root().glob("*/*/*.jpg"))
    chosen = np.random.default_rng(0).permutation(len(everything))[:n_photos]
    paths = [everything[i] for i in sorted(chosen)]
    with tempfile.TemporaryDirectory() as folder:
        models = [
            measure("lite", "", paths, Path(folder)),
            measure("ViT-B-32-quickgelu", "random", paths, Path(folder)),
        ]
    publish("peers", {"photos": len(paths), "models": models})


if __name__ == "__main__":
    main()
