"""Weights in several formats -> tensor names that OpenCLIP reads.

A file may be safetensors, whole or in shards, or a file of `torch.save`: the tensors alone, or a
training checkpoint that contains them. The names may have a prefix such as `module.` or `model.`,
and may be those of transformers' `CLIPModel`. A folder of transformers is read with its
configuration. No code in a file is executed.
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
from fedapt.model.transformers_clip import (
    State,
    convert_config,
    convert_names,
    first_words,
    refuse_weights,
)

_INDEX = ".safetensors.index.json"
_WEIGHTS = ("model.safetensors", f"model{_INDEX}", "pytorch_model.bin")
# entries of a training checkpoint that hold the tensors: Lightning and OpenCLIP, then others
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "ema")
_SCALE = "logit_scale"  # every CLIP has it; its prefix is the prefix of the model's names
_MAX_WRAPPED = 3


@contextmanager
def as_open_clip_file(path: Path) -> Iterator[Path]:
    """A file that OpenCLIP reads: the same file, or a temporary one with its tensors.

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
    """A folder that OpenCLIP reads: the same folder, or one converted from transformers.

    Raises:
        ModelError: the folder has neither format, or its weights cannot be read.
        ModelNotSupported: a transformers model that OpenCLIP cannot hold.
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
    config = convert_config(folder)
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
    """All tensors of a file under their names in it, on the CPU.

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
            expected="only tensors: any other object in a pickled file could run code",
            next_step="on the machine that wrote it, write safetensors.torch.save_file("
            "model.state_dict(), ...) and use that file",
        ) from None  # torch's message recommends to disable this protection
    except Exception as error:  # torch's reader raises many types
        raise refuse_weights(path, f"a file that cannot be read ({first_words(error)})") from error
    for _ in range(_MAX_WRAPPED):
        inside = [content[w] for w in _WRAPPERS if isinstance(content, dict) and w in content]
        if not inside or not isinstance(inside[0], dict):
            break
        content = inside[0]
    if not isinstance(content, dict):
        raise refuse_weights(path, f"a {type(content).__name__}")
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not state:
        raise refuse_weights(path, "no tensor")
    return state


def _read_shards(index: Path) -> State:
    names = json.loads(index.read_text("utf-8"))["weight_map"]
    state: State = {}
    for shard in sorted(set(names.values())):
        if Path(shard).name != shard:  # a path in the index could lead outside the folder
            raise ValueError(f"the shard {shard!r}")
        state |= load_file(index.with_name(shard))
    if missing := names.keys() - state.keys():
        raise ValueError(f"{len(missing)} tensors missing in the shards")
    return state


def find_model(state: Mapping[str, Tensor]) -> State:
    """The CLIP among a file's tensors, by OpenCLIP's names; all tensors if there is none.

    Raises:
        ModelNotSupported: the weights are those of another kind of model.
    """
    scales = [name for name in state if name == _SCALE or name.endswith(f".{_SCALE}")]
    if not scales:
        return dict(state)
    # with several prefixes, such as a model and its average, the shortest one is the model's
    prefix = min(scales, key=len).removesuffix(_SCALE)
    found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not any(name.startswith(("text_model.", "vision_model.")) for name in found):
        return found
    if "text_model.head.weight" in found or "vision_model.head.probe" in found:
        raise ModelNotSupported(
            where="the weights",
            found="weights of transformers' SiglipModel",
            expected="weights of transformers' CLIPModel or of OpenCLIP",
            next_step="use OpenCLIP's SigLIP of the same name, such as ViT-B-16-SigLIP",
        )
    return convert_names(found)


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    # copy tensors that share memory, which safetensors refuses
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, path)
