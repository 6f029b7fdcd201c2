"""The checkpoint: one .safetensors file with what was learned and how to use it (docs/artifact.md).

Tensors: `meta_prompt` [C, M, W] or [M, W], `adaptive_network` [N, D], `keys` [N, M, W], float32.
Metadata: one JSON object under the key `fedapt`. The same run gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedapt.core.errors import CheckpointError, ReportedError
from fedapt.core.files import write_bytes
from fedapt.model.backbone import Backbone
from fedapt.model.prompted_clip import GlobalModel, prompted_text
from fedapt_runtime import Preprocessing

SCHEMA = 1
_METADATA_KEY = "fedapt"
_MOST_BYTES = 4 << 30
_TENSORS = ("meta_prompt", "adaptive_network", "keys")


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself.

    Attributes:
        method: the federated method, `fedapt`.
        model, pretrained, clip_sha256: the CLIP, by name and by hash of its weights.
        classes, domains: names in the order of the tensors' axes.
        temperature: tau.
        rounds: rounds of training behind the tensors.
        seed: the run's seed.
        test_fraction, split_seed: the split, so that an evaluation never meets training images.
        class_names: folder name -> name in the prompt, where they differ.
        preprocessing: as `Preprocessing.to_dict` gives it.
        versions: of the software that trained it.
    """

    method: str
    model: str
    pretrained: str
    clip_sha256: str
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    temperature: float
    rounds: int
    seed: int
    test_fraction: float
    split_seed: int
    class_names: dict[str, str]
    preprocessing: dict[str, Any]
    versions: dict[str, str]
    schema: int = SCHEMA


@dataclass(frozen=True)
class Checkpoint:
    """Learned tensors, float32 on the CPU, and their description."""

    info: CheckpointInfo
    meta_prompt: Tensor
    adaptive_network: Tensor
    keys: Tensor

    @property
    def context_length(self) -> int:
        """M, learned context tokens."""
        return self.keys.shape[1]

    def save(self, path: Path) -> None:
        """Write the file whole, or leave the old one.

        Raises:
            FileError: the folder cannot be written, or the disk is full.
        """
        # one metadata key: safetensors writes several in no fixed order
        metadata = json.dumps(dataclasses.asdict(self.info), sort_keys=True, ensure_ascii=False)
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        write_bytes(path, save(tensors, {_METADATA_KEY: metadata}))

    def to_global_model(self, backbone: Backbone) -> GlobalModel:
        """The server's model, on the backbone's device.

        Raises:
            CheckpointError: the checkpoint was trained on another CLIP.
        """
        self.check_backbone(backbone)
        device = backbone.device
        return GlobalModel(
            text=prompted_text(backbone, self.info.classes, self.context_length),
            context=self.meta_prompt.to(device),
            adaptive_network=self.adaptive_network.to(device),
            keys=self.keys.to(device),
            temperature=self.info.temperature,
            logit_scale=backbone.logit_scale,
        )

    def check_backbone(self, backbone: Backbone) -> None:
        """Refuse a CLIP other than the one that the checkpoint was trained on.

        Raises:
            CheckpointError: the hashes of the weights differ.
        """
        if backbone.sha256 != self.info.clip_sha256:
            raise CheckpointError(
                where=f"CLIP {backbone.label}",
                found=f"weights of hash {backbone.sha256[:12]}",
                expected=f"{self.info.clip_sha256[:12]}, which the checkpoint was trained on"
                f" ({' '.join(filter(None, (self.info.model, self.info.pretrained)))})",
                next_step="use the same weights, or train again",
            )


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint; nothing in it is executed.

    Raises:
        CheckpointError: missing, damaged, of another schema, or with impossible tensors.
    """
    if not path.is_file():
        raise _refuse(path, "no such file" if not path.exists() else "not a file")
    if path.stat().st_size > _MOST_BYTES:
        raise _refuse(path, f"a file of {path.stat().st_size:,} bytes")
    try:
        with safe_open(str(path), framework="pt") as stream:
            metadata = (stream.metadata() or {}).get(_METADATA_KEY)
            if metadata is None:
                raise _refuse(path, "a safetensors file without fedapt's metadata")
            fields = json.loads(metadata)
            if fields.get("schema") != SCHEMA:
                raise CheckpointError(
                    where=path,
                    found=f"a checkpoint of schema {fields.get('schema')}",
                    expected=f"schema {SCHEMA}",
                    next_step="use the fedapt version that wrote it, or train again",
                )
            tensors = {name: stream.get_tensor(name) for name in _TENSORS}
        for name in ("classes", "domains"):
            fields[name] = tuple(fields[name]) if isinstance(fields[name], list) else None
        checkpoint = Checkpoint(info=CheckpointInfo(**fields), **tensors)
        _check_info(path, checkpoint.info)
        _check_tensors(path, checkpoint)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _refuse(path, f"a damaged file ({type(error).__name__}: {error})") from error
    return checkpoint


def _check_info(path: Path, info: CheckpointInfo) -> None:
    names = (info.classes, info.domains, info.class_names.values())
    texts = (info.method, info.model, info.pretrained, info.clip_sha256, *chain(*names))
    wrong = [name for name in ("rounds", "seed", "split_seed") if not _is_count(info, name)]
    if not (isinstance(info.temperature, float) and 0 < info.temperature < math.inf):
        wrong.append("temperature")
    if not (isinstance(info.test_fraction, float) and 0 <= info.test_fraction < 1):
        wrong.append("test_fraction")
    if not all(isinstance(text, str) for text in texts):
        wrong.append("names")
    try:
        Preprocessing.from_dict(info.preprocessing)
    except (ReportedError, TypeError, AttributeError, ValueError, KeyError):
        wrong.append("preprocessing")
    if wrong:
        raise _refuse(path, f"metadata with a wrong {', '.join(wrong)}")


def _is_count(info: CheckpointInfo, name: str) -> bool:
    value = getattr(info, name)
    return type(value) is int and value >= 0


def _check_tensors(path: Path, checkpoint: Checkpoint) -> None:
    n_classes, n_domains = len(checkpoint.info.classes), len(checkpoint.info.domains)
    for name in _TENSORS:
        tensor = getattr(checkpoint, name)
        if tensor.dtype != torch.float32 or not torch.isfinite(tensor).all():
            raise _refuse(path, f"{name} of {tensor.dtype} with NaN, infinity or a wrong dtype")
    keys, prompt = checkpoint.keys, checkpoint.meta_prompt
    network = checkpoint.adaptive_network
    fits = (
        keys.dim() == 3
        and len(keys) == n_domains > 0
        and tuple(prompt.shape) in ((n_classes, *keys.shape[1:]), tuple(keys.shape[1:]))
        and network.dim() == 2
        and len(network) == n_domains
    )
    if not fits:
        shapes = {name: list(getattr(checkpoint, name).shape) for name in _TENSORS}
        raise _refuse(path, f"tensors {shapes} for {n_classes} classes and {n_domains} domains")


def _refuse(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        where=path,
        found=found,
        expected="a checkpoint.safetensors written by `fedapt train`",
        next_step="check the path, or train again",
    )
