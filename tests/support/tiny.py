"""A real but tiny CLIP and a tiny set of images, for tests that need every part at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

DOMAINS = ("photo", "sketch")
CLASSES = ("blue_disc", "red_square", "stripes")


def write_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """A folder that OpenCLIP loads: a ViT of 64 pixels and a two-layer causal text tower."""
    import torch
    from safetensors.torch import save_file

    from fedapt.model.open_clip_import import import_open_clip

    config = {
        "model_cfg": {
            "embed_dim": 32,
            "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
            "text_cfg": {
                "context_length": 77,
                "vocab_size": 49408,
                "width": 32,
                "heads": 2,
                "layers": 2,
            },
        },
        "preprocess_cfg": {"size": 64, "interpolation": "bicubic", "resize_mode": "shortest"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = import_open_clip().CLIP(**config["model_cfg"])
        for parameter in clip.visual.parameters():  # spread the features of a random tower
            if parameter.dim() > 1:
                parameter.data *= 3
    state = {name: tensor.contiguous() for name, tensor in clip.state_dict().items()}
    save_file(state, str(folder / "open_clip_model.safetensors"))
    return folder


def draw_image(domain: str, label: str, rng: np.random.Generator) -> Image.Image:
    """One 80 x 72 image: the class is the shape, the domain is the colour scheme."""
    height, width = 72, 80
    y, x = np.mgrid[:height, :width]
    cx, cy, r = rng.integers(30, 50), rng.integers(28, 44), rng.integers(14, 24)
    if label == "blue_disc":
        mask, colour = (x - cx) ** 2 + (y - cy) ** 2 < r * r, (30, 60, 220)
    elif label == "red_square":
        mask, colour = (abs(x - cx) < r) & (abs(y - cy) < r), (220, 40, 30)
    else:
        mask, colour = ((x + cx) // 8) % 2 == 0, (40, 160, 60)
    if domain == "sketch":
        colour = (0, 0, 0)
    pixels = np.full((height, width, 3), 255 if domain == "sketch" else 190, dtype=np.int64)
    pixels[mask] = colour
    pixels += rng.integers(-12, 13, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_tiny_images(root: Path, per_class: int = 10, domains: tuple[str, ...] = DOMAINS) -> Path:
    """`root/<domain>/<class>/*.png`, drawn from a fixed seed."""
    rng = np.random.default_rng(0)
    for domain in domains:
        for label in CLASSES:
            folder = root / domain / label
            folder.mkdir(parents=True)
            for i in range(per_class):
                draw_image(domain, label, rng).save(folder / f"{i:03}.png")
    return root
