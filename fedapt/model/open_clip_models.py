"""OpenCLIP's models by name, folder or hub, with errors that explain a wrong name."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedapt.core.errors import ModelError, ModelNotSupported
from fedapt.core.names import is_path
from fedapt.core.quiet import quiet
from fedapt.model.hub import ask_hub_once, describe_cache
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.unfilled import Unfilled, is_filled
from fedapt.model.weights import as_open_clip_file, as_open_clip_folder

LITE = "lite"
RANDOM = "random"  # the only value that gives random weights
_RANDOM_SEED = 0
_HUB, _FOLDER = "hf-hub:", "local-dir:"  # as OpenCLIP writes them
_MAX_NAMED = 3
# OpenCLIP's answer to a text tower of Hugging Face's; `open_clip_import` hides that package
_NO_TRANSFORMERS = "pip install transformers"


def build_open_clip(name: str, pretrained: str) -> tuple[nn.Module, Any]:
    """The model and its tokenizer; see `backbone.load_backbone`.

    Raises:
        ModelError: unknown name or tag, no weights, or weights that do not fit.
        ModelNotSupported: the text tower takes no learned context.
    """
    with ExitStack() as stack:
        is_folder = name.startswith(_FOLDER) or is_path(name)
        source = name
        if is_folder:
            folder = Path(name.removeprefix(_FOLDER))
            source = f"{_FOLDER}{stack.enter_context(as_open_clip_folder(folder))}"
        elif not name.startswith(_HUB):
            _check_name(import_open_clip(), name, pretrained)
        if source.startswith((_HUB, _FOLDER)) and pretrained:
            raise ModelError(
                where="pretrained",
                found=repr(pretrained),
                expected=f"no tag, because {name} has its own weights",
                next_step="leave `pretrained` out",
            )
        weights = pretrained
        if pretrained and Path(pretrained).is_file():
            weights = str(stack.enter_context(as_open_clip_file(Path(pretrained))))
        # folders, files and random weights need no hub; their tokenizer may need it
        silent = stack.enter_context(ask_hub_once()) if _takes_hub(source, weights) else ""
        # OpenCLIP's logs and warnings repeat the errors below
        stack.enter_context(quiet(logging.CRITICAL))
        where = f"model {name}" + (f", pretrained {pretrained}" if pretrained else "")
        clip = _load_towers(source, weights, where, silent)
        try:
            return clip, import_open_clip().get_tokenizer(source)
        except Exception as error:  # as below; Hugging Face's tokenizers also need transformers
            raise ModelError(
                where=f"model {name}",
                found=f"no usable tokenizer ({_say(error, silent)})",
                expected="the files of its tokenizer, and the package transformers that reads them",
                next_step="pip install 'fedapt[transformers]', and check the network",
            ) from error


def _takes_hub(source: str, weights: str) -> bool:
    if source.startswith(_HUB):
        return True
    return bool(weights) and weights != RANDOM and not Path(weights).is_file()


def _load_towers(source: str, weights: str, where: str, silent: str) -> nn.Module:
    create: Callable[..., nn.Module] = import_open_clip().create_model
    try:
        if weights == RANDOM:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_RANDOM_SEED)
                return create(source, pretrained=None, load_weights=False)
        clip = _create_unfilled(create, source, weights)
        if clip is not None:
            return clip
        return create(source, pretrained=weights or None, require_pretrained=True)
    except Exception as error:
        if _NO_TRANSFORMERS in str(error):
            raise _refuse_text_tower(where, "a text tower") from error
        # the hub, the file system, torch and OpenCLIP raise many types; all mean no weights
        offline = f"; the hub is {describe_cache()}" if silent else ""
        raise ModelError(
            where=where,
            found=f"no usable weights ({_say(error, silent)})",
            expected="weights that the hub serves, or a local file or folder of this model",
            next_step="check the network, or download the weights elsewhere and "
            f"name the file with `pretrained`; the default model lite needs no download{offline}",
        ) from error


def _create_unfilled(
    create: Callable[..., nn.Module], source: str, weights: str
) -> nn.Module | None:
    """The model without a second copy of its weights; None where it needs initial values."""
    try:
        with Unfilled():
            clip = create(source, pretrained=weights or None, require_pretrained=True)
    except Exception as error:
        if "meta" in str(
            error
        ):  # an operation on a parameter without values, which has the device `meta`
            return None
        raise
    return clip if is_filled(clip) else None  # OpenCLIP initialises the tensors that a file lacks


def _say(error: Exception, silent: str = "") -> str:
    """A library's error in a few words, without advice that does not apply here."""
    text = " ".join(str(error).split())
    if silent:
        return f"{silent}, and its cache has no such files"
    if "weights_only" in text:
        return "a pickled file that holds more than tensors, which is not read"
    if wrong := _count_keys(text):
        return wrong
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _count_keys(text: str) -> str:
    """Number and names of tensors that are missing, unknown or of another shape."""
    found = []
    for what, title in (("missing", "Missing key"), ("unknown", "Unexpected key")):
        listed = re.search(rf"{title}\(s\) in state_dict: ((?:\"[^\"]+\"(?:, )?)+)", text)
        names = re.findall(r'"([^"]+)"', listed[1]) if listed else []
        if names:
            more = ", ..." if len(names) > _MAX_NAMED else ""
            found.append(f"{len(names)} {what}: {', '.join(names[:_MAX_NAMED])}{more}")
    shapes = re.findall(r"size mismatch for (\S+):", text)
    if shapes:
        more = ", ..." if len(shapes) > _MAX_NAMED else ""
        found.append(f"{len(shapes)} of another shape: {', '.join(shapes[:_MAX_NAMED])}{more}")
    return f"tensors that do not fit the model, {'; '.join(found)}" if found else ""


def _refuse_text_tower(where: str, what: str) -> ModelNotSupported:
    return ModelNotSupported(
        where=where,
        found=f"{what} of Hugging Face's, which takes no learned context",
        expected="a text transformer of OpenCLIP's own",
        next_step="choose another model, such as ViT-B-32-quickgelu or lite",
    )


def _check_name(open_clip: Any, name: str, pretrained: str) -> None:
    names = open_clip.list_models()
    if name not in names:
        close = difflib.get_close_matches(name, [*names, LITE], n=3, cutoff=0.4)
        raise ModelError(
            where="model",
            found=f"the unknown model {name!r}",
            expected=f"lite, one of OpenCLIP's {len(names)} models, a folder, or hf-hub:NAME",
            next_step=f"did you mean {' or '.join(close)}" if close else "check the spelling",
        )
    config = open_clip.get_model_config(name)
    if inner := config["text_cfg"].get("hf_model_name"):
        raise _refuse_text_tower(f"model {name}", f"the text tower {inner}")
    if pretrained == RANDOM or (pretrained and Path(pretrained).is_file()):
        return
    quick_gelu = bool(config.get("quick_gelu"))

    def fits(tag: str) -> bool:
        return bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu")) == quick_gelu

    tags = [tag for tag in open_clip.list_pretrained_tags_by_model(name) if fits(tag)]
    if pretrained in open_clip.list_pretrained_tags_by_model(name) and pretrained not in tags:
        # OpenCLIP only warns here, and every feature would be wrong
        other = f"{name}-quickgelu"
        raise ModelError(
            where=f"model {name}",
            found=f"pretrained {pretrained!r}, weights trained with another activation function",
            expected=f"one of {', '.join(tags) or '(no tags)'}, or the model of these weights",
            next_step=f"use the model {other}" if other in names else "choose another model or tag",
        )
    if pretrained not in tags:
        raise ModelError(
            where=f"model {name}",
            found=f"pretrained {pretrained!r}" if pretrained else "no pretrained weights",
            expected=f"one of {', '.join(tags) or '(no tags)'}, a weights file, or random",
            next_step=f"add `pretrained` {tags[0]}" if tags else "name a file with `pretrained`",
        )
