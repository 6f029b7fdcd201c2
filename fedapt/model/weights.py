"""Weights as people have them -> names that OpenCLIP reads.

A file may be safetensors, whole or in shards, or what `torch.save` writes: the tensors alone, or a
training checkpoint with them inside; its names may have `module.`, `model.` or another prefix; and
its names may be those of transformers' `CLIPModel`. A folder of transformers' is read with its
configuration. Nothing in a file is executed.

Source: transformers, `CLIPModel`, `CLIPConfig` and `CLIPImageProcessor`; OpenCLIP, `CLIP`.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedapt.core.errors import ModelError, ModelNotSupported
from fedapt.core.files import scratch_folder

State = dict[str, Tensor]

_INDEX = ".safetensors.index.json"
_WEIGHTS = ("model.safetensors", f"model{_INDEX}", "pytorch_model.bin")
# what holds the tensors in a training checkpoint: Lightning and OpenCLIP, then others
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "ema")
_SCALE = "logit_scale"  # of every CLIP: where it stands, the model's names begin
_MAX_WRAPPED = 3
_VOCABULARY = 49408  # of the one tokenizer that CLIPModel and OpenCLIP share
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


@contextmanager
def as_open_clip_file(path: Path) -> Iterator[Path]:
    """A file that OpenCLIP reads: the same, or one with its tensors that goes with the block.

    Raises:
        ModelError: it cannot be read, or holds other things than tensors.
        ModelNotSupported: the weights are those of another kind of model.
    """
    state = read_state(path)
    found = find_model(state)
    if path.suffix == ".safetensors" and found.keys() == state.keys():
        yield path
        return
    del state
    with scratch_folder() as folder:
        _save(found, folder / "plain.safetensors")
        yield folder / "plain.safetensors"


@contextmanager
def as_open_clip_folder(folder: Path) -> Iterator[Path]:
    """A folder that OpenCLIP reads: the same, or one made of a transformers' folder.

    Raises:
        ModelError: it is none of either, or its weights cannot be read.
        ModelNotSupported: a model of transformers' that OpenCLIP has not.
    """
    if (folder / "open_clip_config.json").is_file():
        yield folder
        return
    if not (folder / "config.json").is_file():
        raise ModelError(
            where=folder,
            found="no open_clip_config.json",
            expected="a folder with that file, or with transformers' config.json, and weights",
            next_step="check the path, or write the folder with OpenCLIP's push_to_hf_hub or"
            " transformers' save_pretrained",
        )
    config = _convert_config(folder)
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ModelError(
            where=folder,
            found="no weights",
            expected=f"one of {', '.join(_WEIGHTS)}",
            next_step="copy the whole folder",
        )
    with scratch_folder() as scratch:
        (scratch / "open_clip_config.json").write_text(json.dumps(config), "utf-8")
        _save(find_model(read_state(weights)), scratch / "open_clip_model.safetensors")
        yield scratch


def read_state(path: Path) -> State:
    """Every tensor of a file, by the names that it has there; on the CPU.

    Raises:
        ModelError: it cannot be read, or holds other things than tensors.
    """
    try:
        if path.name.endswith(_INDEX):
            return _read_shards(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise ModelError(
            where=path,
            found=f"a pickled file that holds more than tensors{what}, or a damaged one",
            expected="tensors alone: whatever else is in a pickled file could run code",
            next_step="where the file comes from, write safetensors.torch.save_file("
            "model.state_dict(), ...) and use that file",
        ) from None  # torch's message advises to read it without that protection
    except Exception as error:  # torch's reader raises whatever it comes across
        raise _refuse(path, f"a file that cannot be read ({_first_words(error)})") from error
    for _ in range(_MAX_WRAPPED):
        inside = [content[w] for w in _WRAPPERS if isinstance(content, dict) and w in content]
        if not inside or not isinstance(inside[0], dict):
            break
        content = inside[0]
    if not isinstance(content, dict):
        raise _refuse(path, f"a {type(content).__name__}")
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not state:
        raise _refuse(path, "no tensor")
    return state


def _read_shards(index: Path) -> State:
    names = json.loads(index.read_text("utf-8"))["weight_map"]
    state: State = {}
    for shard in sorted(set(names.values())):
        if Path(shard).name != shard:  # a path in the index leads wherever it says
            raise ValueError(f"the shard {shard!r}")
        state |= load_file(index.with_name(shard))
    if missing := names.keys() - state.keys():
        raise ValueError(f"{len(missing)} tensors missing in the shards")
    return state


def find_model(state: Mapping[str, Tensor]) -> State:
    """The CLIP among a file's tensors, by OpenCLIP's names; all as they are where there is none.

    Raises:
        ModelNotSupported: the weights are those of another kind of model.
    """
    scales = [name for name in state if name == _SCALE or name.endswith(f".{_SCALE}")]
    if not scales:
        return dict(state)
    # of several, such as an average beside the model, the shortest is the model's
    prefix = min(scales, key=len).removesuffix(_SCALE)
    found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not any(name.startswith(("text_model.", "vision_model.")) for name in found):
        return found
    if "text_model.head.weight" in found or "vision_model.head.probe" in found:
        raise ModelNotSupported(
            where="the weights",
            found="those of transformers' SiglipModel",
            expected="those of a CLIPModel of transformers', or OpenCLIP's",
            next_step="use OpenCLIP's SigLIP of the same name, such as ViT-B-16-SigLIP",
        )
    return _convert_names(found)


def _convert_names(state: Mapping[str, Tensor]) -> State:
    """Transformers' CLIPModel -> OpenCLIP's CLIP; what is not known keeps its name."""
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


def _convert_config(folder: Path) -> dict[str, Any]:
    """OpenCLIP's configuration of a transformers' folder."""
    config = _read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind != "clip":
        raise ModelNotSupported(
            where=folder,
            found=f"a model of transformers' of the type {kind!r}",
            expected="the type 'clip' (CLIPModel), or a folder of OpenCLIP's",
            next_step="use the same model of OpenCLIP's, where there is one",
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
    if not path.is_file():  # a fine-tuned model is often saved without: CLIP's own
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
        raise _refuse(path, f"a file that cannot be read ({_first_words(error)})") from error
    if not isinstance(found, dict):
        raise _refuse(path, "no JSON object")
    return found


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    # tensors that share memory are written apart: safetensors refuses them
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, path)


def _first_words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:150]


def _unusual(folder: Path, found: str) -> ModelNotSupported:
    return ModelNotSupported(
        where=folder,
        found=f"a CLIPModel with {found}",
        expected="what OpenCLIP's CLIP has: GELU or QuickGELU in both towers, CLIP's tokenizer",
        next_step="use another model",
    )


def _refuse(path: Path, found: str) -> ModelError:
    return ModelError(
        where=path,
        found=found,
        expected="the weights of a CLIP: safetensors, or what torch.save writes of a state dict",
        next_step="check the path, or write the weights again",
    )
