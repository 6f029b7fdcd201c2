"""What the fused graph costs beside its bare image tower, and what it saves beside exact prompts.

    python benchmarks/fused_speed.py

ViT-B/32 (`random` weights: speed does not depend on their values), batches of 32 on the CPU, all in
one run. The authors' way encodes C class prompts of 77 tokens for every image, in torch; a few
images are timed. Ratios are medians over interleaved repetitions, since machines are shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from figures import publish
from full_prompts import encode_full_prompts
from torch.nn.functional import normalize

from fedapt.core.config import PromptConfig
from fedapt.model.adaptive_network import draw_adaptive_network
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.image_tower import image_tower
from fedapt.model.prompt import draw_keys, personalise, start_context
from fedapt.model.prompted_clip import GlobalModel, prompted_text
from fedapt.onnx.tower import read_tower
from fedapt.onnx.weights import open_model
from fedapt_export.fuse import fuse

BATCH, N_DOMAINS, CONTEXT_LENGTH, REPETITIONS = 32, 4, 24, 7
WORDS = ("mug", "bike", "keyboard", "monitor", "mouse", "projector", "laptop", "calculator")


def build_model(backbone: Backbone, n_classes: int) -> GlobalModel:
    """An untrained global model with this many classes."""
    names = tuple(f"{WORDS[i % len(WORDS)]} {i}" for i in range(n_classes))
    width = backbone.text_tower.width
    return GlobalModel(
        prompted_text(backbone, names, CONTEXT_LENGTH),
        start_context(backbone, n_classes, PromptConfig(context_length=CONTEXT_LENGTH), 0),
        draw_adaptive_network(N_DOMAINS, backbone.joint_width, 0),
        draw_keys(N_DOMAINS, CONTEXT_LENGTH, width, 0),
        0.01,
        backbone.logit_scale,
    )


def seconds(work: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def authors_way(backbone: Backbone, model: GlobalModel, pixels: torch.Tensor) -> torch.Tensor:
    """One image: its feature, its weights, its own C prompts at the full 77 tokens."""
    feature = image_tower(backbone)(pixels)
    prompts = personalise(model.context, model.keys, model.weights(feature))[0]
    features = encode_full_prompts(model.text, prompts)
    return model.logit_scale * normalize(feature, dim=-1) @ features.T


def main() -> None:
    backbone = load_backbone("ViT-B-32-quickgelu", "random")
    size = backbone.preprocessing.size
    images = np.random.default_rng(0).integers(0, 256, (BATCH, *size, 3), dtype=np.uint8)
    bare = open_model(read_tower(backbone), "cpu", "tower")
    report: dict[str, object] = {
        "model": "ViT-B-32-quickgelu, random weights",
        "batch": BATCH,
    }
    for n_classes, slow_images in ((10, 4), (345, 1)):
        model = build_model(backbone, n_classes)
        graph = fuse(read_tower(backbone), model.head, backbone.label)
        fused = open_model(graph, "cpu", "fused")
        runs: dict[str, list[float]] = {"bare": [], "fused": []}
        for _ in range(REPETITIONS + 1):
            runs["bare"].append(seconds(bare.run, None, {"images": images}))
            runs["fused"].append(
                seconds(fused.run, ["logits", "domain_weights"], {"images": images})
            )
        ratios = [b / f for b, f in zip(runs["bare"][1:], runs["fused"][1:], strict=True)]
        per_image = median(runs["fused"][1:]) / BATCH
        pixels = torch.from_numpy(images)
        with torch.inference_mode():
            slow = [
                seconds(authors_way, backbone, model, pixels[i : i + 1])
                for i in range(slow_images + 1)
            ][-slow_images:]
        report[f"{n_classes} classes"] = {
            "fused_images_per_second": round(1 / per_image, 2),
            "fused_over_bare_tower": round(median(ratios), 4),
            "exact_prompts_seconds_per_image": round(median(slow), 3),
            "fused_over_exact_prompts": round(median(slow) / per_image, 1),
        }
        print(n_classes, report[f"{n_classes} classes"], flush=True)
    publish("fused_speed", report)


if __name__ == "__main__":
    main()
