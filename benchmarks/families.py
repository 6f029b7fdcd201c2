"""Every family of OpenCLIP models: does what fedapt computes equal what OpenCLIP computes?

    python benchmarks/families.py

One model a family, `random` weights of the true architecture. Text: unit features of prompts
through fedapt's text tower against `clip.encode_text`. Images: unit features of the exported tower
in ONNX Runtime against torch, at batches 1, 2, 5 and 32; and of its float16 version. Writes the
table of docs/models.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from figures import publish
from torch import Tensor
from torch.nn.functional import normalize

from fedapt.core.errors import ReportedError
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.image_tower import FEATURES, INPUT, image_tower
from fedapt.model.prompted_clip import zero_shot_features
from fedapt.onnx.tower import read_tower
from fedapt.onnx.weights import open_model
from fedapt_export.half import to_half
from fedapt_runtime.errors import ModelFileError

CLASSES = ("mug", "laptop computer", "a pair of headphones")
FAMILIES = {
    "ViT, GELU (LAION, DataComp)": "ViT-B-32",
    "ViT, QuickGELU (OpenAI, DFN, MetaCLIP)": "ViT-B-32-quickgelu",
    "ViT with LayerScale": "ViT-M-16-alt",
    "ResNet with attention pooling (OpenAI)": "RN50",
    "ConvNeXt": "convnext_tiny",
    "Swin": "swin_base_patch4_window7_224",
    "timm ViT, average pooling": "vit_medium_patch16_gap_256",
    "timm ViT, relative positions": "vit_relpos_medium_patch16_cls_224",
    "EVA02": "EVA02-B-16",
    "ViTamin": "ViTamin-S",
    "Perception Encoder": "PE-Core-T-16-384",
    "MobileCLIP, ViT": "MobileCLIP-B",
    "MobileCLIP2, FastViT": "MobileCLIP2-S0",
    "CoCa": "coca_ViT-B-32",
    "SigLIP, SigLIP2": "ViT-B-32-SigLIP2-256",
    "CLIPA": "ViT-L-14-CLIPA",
    "Hugging Face text tower": "roberta-ViT-B-32",
    "NLLB": "nllb-clip-base",
}


def compare_text(backbone: Backbone) -> float:
    """Largest difference of unit text features from OpenCLIP's own."""
    clip: Any = backbone.clip
    length = backbone.text_tower.layout.most
    ids = backbone.tokenizer([f"a photo of a {name}." for name in CLASSES], context_length=length)
    with torch.inference_mode():
        expected = normalize(clip.encode_text(ids), dim=-1)
    return float((zero_shot_features(backbone, CLASSES) - expected).abs().max())


def compare_images(backbone: Backbone) -> tuple[float, float | None, int, int]:
    """Largest differences in float32 and float16, nodes of the graph, bytes of its weights."""
    tower = read_tower(backbone)
    sessions = [open_model(tower, "cpu", backbone.label)]
    try:
        sessions.append(open_model(to_half(tower, "fp16"), "cpu", backbone.label))
    except ModelFileError as error:  # an optimiser of ONNX Runtime's own may fail
        print(error)
    height, width = backbone.preprocessing.size
    generator = np.random.default_rng(0)
    differences: list[float] = [0.0] * len(sessions)
    for batch in (1, 2, 5, 32):
        images = generator.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        with torch.inference_mode():
            expected = normalize(image_tower(backbone)(torch.from_numpy(images)), dim=-1)
        for i, session in enumerate(sessions):
            found: Tensor = torch.from_numpy(session.run([FEATURES], {INPUT: images})[0])
            difference = float((normalize(found, dim=-1) - expected).abs().max())
            differences[i] = max(differences[i], difference)
    lower = differences[1] if len(differences) > 1 else None
    return differences[0], lower, len(tower.graph.node), tower.ByteSize()


def main() -> None:
    rows: dict[str, Any] = {}
    for family, name in FAMILIES.items():
        try:
            backbone = load_backbone(name, "random")
        except ReportedError as error:
            rows[family] = {"model": name, "refused": error.found.split(" (")[0]}
        else:
            image, half, nodes, size = compare_images(backbone)
            rows[family] = {
                "model": name,
                "text_difference": compare_text(backbone),
                "image_difference": image,
                "fp16_image_difference": half,
                "nodes": nodes,
                "tower_bytes": size,
            }
        print(family, rows[family], flush=True)
    report = {
        "weights": "random",
        "families": rows,
    }
    publish("families", report)


if __name__ == "__main__":
    main()
