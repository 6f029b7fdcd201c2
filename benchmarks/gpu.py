"""ViT-B/32 in float16 on an NVIDIA GPU: every backend beside torch, as a share of the matrix peak.

    python benchmarks/gpu.py [--batches 1,8,64] [--device cpu]

`random` weights: speed does not depend on their values. Images are uint8 in host memory, as they
come from decoding, so the copy to the GPU is in every figure. The peak is what torch's largest
float16 product reaches in the same run; a share of it counts the tower's products alone.
`--device cpu` tries the script where there is no GPU, with few and small batches; its figures mean
nothing and are not kept.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import publish
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from fedapt.core.errors import ReportedError
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.image_encoder import read_tower
from fedapt.model.image_tower import ImageTower, image_tower
from fedapt_export.engine import EngineSettings, build_engine
from fedapt_export.export import write_model
from fedapt_export.fuse import build_zero_shot_manifest, fuse, read_opset
from fedapt_export.half import to_half
from fedapt_export.head import zero_shot_head
from fedapt_runtime.backends.choose import load_backend

MODEL, CLASSES = "ViT-B-32", ("mug", "bike", "keyboard")
BATCHES = (1, 4, 16, 64, 256, 1024)
SECONDS = 2.0  # at least, for each figure
Images = NDArray[np.uint8]


def images_per_second(work: Callable[[Images], object], images: Images) -> float:
    """Of whole calls, after three that warm up."""
    for _ in range(3):
        work(images)
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < SECONDS or calls < 3:
        work(images)
        calls += 1
    return calls * len(images) / elapsed


def matrix_peak(device: str, size: int) -> float:
    """Floating-point operations per second of a product of two float16 matrices."""
    dtype = torch.float16 if device == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def multiply(_: Images) -> object:
        (a @ b)[0, 0].item()
        return None

    return 2 * size**3 * images_per_second(multiply, np.zeros((1, 1), np.uint8))


def torch_runs(backbone: Backbone, device: str) -> dict[str, Callable[[Images], object]]:
    """The tower in torch, as it is and compiled."""
    tower: ImageTower = image_tower(backbone)
    if device == "cuda":
        tower.clip.half()
        tower.scale, tower.shift = tower.scale.half(), tower.shift.half()
    clip: Any = tower.clip
    scale, shift = tower.scale, tower.shift

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = clip.encode_image(pixels.to(scale.dtype) * scale + shift)
        return features

    def run_with(function: Callable[..., torch.Tensor]) -> Callable[[Images], object]:
        @torch.inference_mode()
        def run(images: Images) -> object:
            pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
            return function(pixels).float().cpu()

        return run

    compiled = torch.compile(forward, mode="max-autotune")
    return {"torch": run_with(forward), "torch.compile": run_with(compiled)}


def backend_runs(
    backbone: Backbone, device: str, folder: Path, most: int
) -> dict[str, Callable[[Images], object] | str]:
    """The fused graph in every backend that is here; why not, where it is not."""
    tower = to_half(read_tower(backbone), "fp16") if device == "cuda" else read_tower(backbone)
    graph = fuse(tower, zero_shot_head(backbone, CLASSES), MODEL)
    model = folder / "model.onnx"
    manifest = build_zero_shot_manifest(backbone, CLASSES)
    write_model(graph, manifest, model)
    assert read_opset(graph) == manifest.opset
    runs: dict[str, Callable[[Images], object] | str] = {}
    for name in ("onnxruntime", "tensorrt-ep", "tensorrt"):
        try:
            path = model
            if name == "tensorrt":
                path = folder / "model.engine"
                build_engine(model, path, EngineSettings("tensorrt", (), 1, min(64, most), most))
            runs[name] = load_backend(path, name, device).run
        except ReportedError as error:
            runs[name] = f"{error.found}"
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    batches = [int(size) for size in options.batches.split(",")]
    device = options.device
    # the head is encoded on the CPU once; the tower is moved for torch alone
    backbone = load_backbone(MODEL, "random")
    with tempfile.TemporaryDirectory() as temporary:
        runs: dict[str, Any] = backend_runs(backbone, device, Path(temporary), max(batches))
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            image_tower(backbone)(torch.zeros(1, 224, 224, 3, dtype=torch.uint8))
        operations = counter.get_total_flops()
        runs |= torch_runs(load_backbone(MODEL, "random", device), device)
        peak = matrix_peak(device, 8192 if device == "cuda" else 1024)
        generator = np.random.default_rng(0)
        rows: dict[str, Any] = {name: run for name, run in runs.items() if isinstance(run, str)}
        for name, run in runs.items():
            if isinstance(run, str):
                continue
            rows[name] = {}
            for batch in batches:
                images = generator.integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
                speed = images_per_second(run, images)
                share = speed * operations / peak
                rows[name][batch] = {"images_per_s": speed, "share_of_peak": share}
                print(f"{name:14} {batch:5} {speed:9.1f}/s {100 * share:5.1f} %", flush=True)
    report = {
        "model": f"{MODEL}, random weights, float16",
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
        "peak_teraflops": peak / 1e12,
        "operations_per_image": operations,
        "backends": rows,
    }
    publish("gpu", report, keep=device == "cuda")


if __name__ == "__main__":
    main()
