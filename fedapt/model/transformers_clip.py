"""transformers' `CLIPModel` -> OpenCLIP's `CLIP`: names of tensors, and the configuration.

Source: transformers, `CLIPModel`, `CLIPConfig` and `CLIPImageProcessor`; OpenCLIP, `CLIP`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedapt.core.errors import ModelError, ModelNotSupported

State = dict[str, Tensor]

_VOCABULARY = 49408  # of the tokenizer that CLIPModel and OpenCLIP share
# defaults of transformers' CLIPConfig, which a configuration leaves out
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "vocab_size": _VOCABULARY,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_RESAMPLING = {2: "bilinear", 3: "bicubic"}
_OUTSIDE = {
    "logit_scale": "logit_scale",
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding": "visual.conv1",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",  # transformers' spelling
    "vision_model.post_layernorm": "visual.ln_post",
}
_IN_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_BLOCK = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_QUERY = re.compile(r"self_attn\.([qkv])_proj")


def convert_names(state: Mapping[str, Tensor]) -> State:
    """Transformers' CLIPModel -> OpenCLIP's CLIP; unknown names stay the same."""
    converted: State = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.endswith("position_ids"):
            continue  # a buffer that counts
        if block := _BLOCK.fullmatch(name):
            tower, number, part, kind = block.groups()
            place = ("visual." if tower == "vision" else "") + f"transformer.resblocks.{number}."
            if query := _QUERY.fullmatch(part):
                joined.setdefault(f"{place}attn.in_proj_{kind}", {})[query[1]] = tensor
            else:
                converted[f"{place}{_IN_BLOCK.get(part, part)}.{kind}"] = tensor
            continue
        stem, _, kind = name.rpartition(".")
        if name in _OUTSIDE:
            is_projection = name.endswith("projection.weight")
            converted[_OUTSIDE[name]] = tensor.T if is_projection else tensor
        else:
            converted[f"{_OUTSIDE.get(stem, stem)}.{kind}".lstrip(".")] = tensor
    for name, parts in joined.items():
        converted[name] = torch.cat([parts[key] for key in "qkv" if key in parts])
    return converted


def convert_config(folder: Path) -> dict[str, Any]:
    """OpenCLIP's configuration for a folder of transformers."""
    config = _read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind != "clip":
        raise ModelNotSupported(
            where=folder,
            found=f"a transformers model of type {kind!r}",
            expected="the type 'clip' (CLIPModel), or a folder in OpenCLIP's format",
            next_step="use OpenCLIP's version of the model, if it exists",
        )
    vision = _VISION | (config.get("vision_config") or {})
    text = _TEXT | (config.get("text_config") or {})
    shared = {(t["hidden_act"], t["layer_norm_eps"]) for t in (vision, text)}
    if len(shared) > 1 or not shared <= {("quick_gelu", 1e-5), ("gelu", 1e-5)}:
        raise _unusual(folder, f"activations and epsilons {sorted(shared)}")
    if text["vocab_size"] != _VOCABULARY or vision["num_channels"] != 3:
        raise _unusual(folder, f"{text['vocab_size']} tokens, {vision['num_channels']} channels")
    return {
        "model_cfg": {
            "embed_dim": config.get("projection_dim", 512),
            "quick_gelu": vision["hidden_act"] == "quick_gelu",
            "vision_cfg": {
                "image_size": vision["image_size"],
                "patch_size": vision["patch_size"],
                "layers": vision["num_hidden_layers"],
                "width": vision["hidden_size"],
                "head_width": vision["hidden_size"] // vision["num_attention_heads"],
                "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
            },
            "text_cfg": {
                "context_length": text["max_position_embeddings"],
                "vocab_size": text["vocab_size"],
                "width": text["hidden_size"],
                "heads": text["num_attention_heads"],
                "layers": text["num_hidden_layers"],
                "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
            },
        },
        "preprocess_cfg": _convert_preprocessing(folder, vision["image_size"]),
    }


def _convert_preprocessing(folder: Path, size: int) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    if (
        not path.is_file()
    ):  # fine-tuned models are often saved without it; CLIP's preprocessing applies
        return {"size": size, "interpolation": "bicubic", "resize_mode": "shortest"}
    found = _read_json(path)
    resampling = _RESAMPLING.get(found.get("resample", 3))
    if resampling is None or not found.get("do_center_crop", True):
        raise _unusual(folder, "another resampling than bilinear or bicubic, or no crop")
    cropped = found.get("crop_size", size)
    cropped = cropped.get("height") if isinstance(cropped, dict) else cropped
    statistics = {
        name: found[f"image_{name}"] for name in ("mean", "std") if f"image_{name}" in found
    }
    config = {"size": cropped, "interpolation": resampling, "resize_mode": "shortest"}
    return config | statistics


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise refuse_weights(path, f"a file that cannot be read ({first_words(error)})") from error
    if not isinstance(found, dict):
        raise refuse_weights(path, "no JSON object")
    return found


def first_words(error: Exception) -> str:
    """A library's error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:150]


def _unusual(folder: Path, found: str) -> ModelNotSupported:
    return ModelNotSupported(
        where=folder,
        found=f"a CLIPModel with {found}",
        expected="a CLIP that OpenCLIP can hold: GELU or QuickGELU in both towers, its tokenizer",
        next_step="use another model",
    )


def refuse_weights(path: Path, found: str) -> ModelError:
    """The error for a file without the weights of a CLIP."""
    return ModelError(
        where=path,
        found=found,
        expected="the weights of a CLIP: safetensors, or what torch.save writes of a state dict",
        next_step="check the path, or write the weights again",
    )
