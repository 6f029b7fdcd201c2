"""A frozen CLIP by name: its towers, tokenizer, preprocessing and the hash of its weights."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fedapt.core.errors import ModelError, ModelNotSupported
from fedapt.model.lite.load import build_lite
from fedapt.model.open_clip_import import import_open_clip
from fedapt.model.open_clip_models import LITE, build_open_clip
from fedapt.model.text_tower import TextTower, check_tokens
from fedapt.model.tokens import PromptTokenizer, to_prompt_tokenizer
from fedapt_runtime import Preprocessing
from fedapt_runtime.errors import ModelFileError


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen CLIP in evaluation mode, float32.

    Attributes:
        name: OpenCLIP model name, `lite`, a folder, or `hf-hub:organisation/repository`.
        pretrained: tag or weights file; empty if the name alone identifies the weights.
        clip: the OpenCLIP model; `encode_image` maps normalised images to features.
        text_tower: embeddings -> features.
        tokenizer: OpenCLIP's tokenizer of the model.
        prompts: the parts of that tokenizer, for prompts with a learned context.
        preprocessing: image file -> uint8 array, and the normalisation that follows.
    """

    name: str
    pretrained: str
    clip: nn.Module
    text_tower: TextTower
    tokenizer: Any
    prompts: PromptTokenizer
    preprocessing: Preprocessing

    @property
    def logit_scale(self) -> float:
        """exp(s), the factor between cosine and logit."""
        return float(self.clip.get_parameter("logit_scale").detach().exp())

    @property
    def joint_width(self) -> int:
        """D, the width of image and text features."""
        projection = self.text_tower.text_projection
        if isinstance(projection, nn.Linear):
            return projection.out_features
        return self.text_tower.width if projection is None else projection.shape[1]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.clip.get_parameter("logit_scale").device

    @cached_property
    def sha256(self) -> str:
        """Hash of all weights and the activation; it identifies the CLIP."""
        return _hash_clip(self.clip)

    @cached_property
    def image_sha256(self) -> str:
        """Hash of the image tower; it shows whether cached features are still valid."""
        return _hash_clip(self.clip, "visual.")

    def text_tower_in(self, dtype: torch.dtype) -> TextTower:
        """The text tower with its matrix products in another precision."""
        if dtype == torch.float32:
            return self.text_tower
        return TextTower(self.clip, self.name, dtype).eval()

    @property
    def label(self) -> str:
        """Name and pretrained tag, for people."""
        return f"{self.name} ({self.pretrained})" if self.pretrained else self.name


def hash_tensors(tensors: Iterable[tuple[str, Tensor]], more: bytes = b"") -> str:
    """SHA-256 over names, dtypes, shapes and bytes, sorted by name, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data = tensor.detach().cpu().contiguous()
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    digest.update(more)
    return digest.hexdigest()


def _hash_clip(clip: nn.Module, prefix: str = "") -> str:
    """Hash of a module below a prefix: its weights, and whether it uses QuickGELU.

    The same weights load with and without QuickGELU, and then give different features.
    """
    state = [item for item in clip.state_dict().items() if item[0].startswith(prefix)]
    kinds = {type(m).__name__ for n, m in clip.named_modules() if n.startswith(prefix)}
    return hash_tensors(state, b"QuickGELU" if "QuickGELU" in kinds else b"")


def load_backbone(
    name: str, pretrained: str = "", device: str = "cpu", depth: str = "scale"
) -> Backbone:
    """Load a CLIP. Its weights are random only if `pretrained` is `random`.

    Args:
        name: `lite`, an OpenCLIP model name, a folder with `open_clip_config.json` and weights, or
            `hf-hub:organisation/repository`.
        pretrained: for an OpenCLIP model name, a pretrained tag, a weights file, or `random`.
        device: torch device of the towers.
        depth: depth of images with more than 8 bits, see `Preprocessing`.

    Raises:
        ModelError: unknown name or tag, no weights, or weights that do not fit.
        ModelNotSupported: the text tower or the preprocessing cannot be handled exactly.
        DependencyError: a package that the model needs is not installed.
    """
    if name == LITE:
        if pretrained:
            raise ModelError(
                where="pretrained",
                found=repr(pretrained),
                expected="no tag, because lite has one set of weights",
                next_step="leave `pretrained` out, or choose another model",
            )
        clip = build_lite()
        tokenizer = import_open_clip().SimpleTokenizer()
    else:
        clip, tokenizer = build_open_clip(name, pretrained)
    prompts = to_prompt_tokenizer(tokenizer, name)
    for parameter in clip.parameters():
        parameter.requires_grad_(False)
    clip = clip.float().to(device).eval()
    text_tower = TextTower(clip, name)
    check_tokens(clip, prompts, name)
    return Backbone(
        name=name,
        pretrained=pretrained,
        clip=clip,
        text_tower=text_tower.eval(),
        tokenizer=tokenizer,
        prompts=prompts,
        preprocessing=dataclasses.replace(_read_preprocessing(clip, name), depth=depth),
    )


def _read_preprocessing(clip: nn.Module, name: str) -> Preprocessing:
    visual: Any = clip.get_submodule("visual")
    fields: dict[str, Any] = dict(visual.preprocess_cfg)
    size = fields["size"]
    fill = fields.pop("fill_color", 0)
    mode = fields.pop("mode", "RGB")
    if mode != "RGB" or fields["resize_mode"] == "longest":
        raise ModelNotSupported(
            where=f"model {name}",
            found=f"mode {mode}, resize mode {fields['resize_mode']}, fill colour {fill}",
            expected="RGB, resized by the shortest side or squashed",
            next_step="choose another model",
        )
    try:
        return Preprocessing(
            size=(size, size) if isinstance(size, int) else (int(size[0]), int(size[1])),
            mean=tuple(float(v) for v in fields["mean"]),  # type: ignore[arg-type]
            std=tuple(float(v) for v in fields["std"]),  # type: ignore[arg-type]
            interpolation=fields["interpolation"],
            resize_mode=fields["resize_mode"],
        )
    except ModelFileError as error:  # the runtime's error names a model file
        raise ModelNotSupported(
            where=f"model {name}",
            found=f"preprocessing with {error.found}",
            expected=error.expected,
            next_step="choose another model",
        ) from error
