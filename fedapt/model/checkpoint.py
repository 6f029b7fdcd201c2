"""The checkpoint: one .safetensors file with learned tensors and metadata (docs/artifact.md).

Tensors, float32: the learned tensors under the method's names, and `keys` [N, M, W] of a method
with keys. FedAPT has `meta_prompt` [C, M, W] or [M, W] and `adaptive_network` [N, D].
Metadata: one JSON object under the key `fedapt`. The same run gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedapt.core.config import Config, config_from_dict
from fedapt.core.errors import CheckpointError, ConfigError, ReportedError
from fedapt.core.files import write_bytes
from fedapt.core.names import ADAPTIVE_NETWORK, FUSED_METHODS, KEYS, META_PROMPT
from fedapt.model.backbone import Backbone
from fedapt.model.prompted_clip import GlobalModel, prompted_text
from fedapt_runtime import Preprocessing, integrity

SCHEMA = 2  # raise when an older version would misread the file; added fields do not count
_METADATA_KEY = "fedapt"
_MAX_BYTES = 16 << 30


@dataclass(frozen=True)
class CheckpointInfo:
    """Description of a checkpoint.

    Attributes:
        model, pretrained, clip_sha256: name of the CLIP and hash of its weights. A folder or file
            is stored with its path, from which later commands load it.
        classes: names in the order of the labels.
        domains: trained domains, in the order of their indices.
        keys: name of each key.
        clients: index of each client's domain.
        rounds: number of rounds that trained the tensors.
        config: the run's settings, without the folder of its images and a joined checkpoint's path.
        preprocessing: preprocessing of the images that it was trained on.
        versions: versions of the software that trained it.
    """

    model: str
    pretrained: str
    clip_sha256: str
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    keys: tuple[str, ...]
    clients: tuple[int, ...]
    rounds: int
    config: Config
    preprocessing: Preprocessing
    versions: dict[str, str]
    schema: int = SCHEMA

    @property
    def method(self) -> str:
        """The federated method."""
        return self.config.train.method


@dataclass(frozen=True)
class Checkpoint:
    """Learned tensors and keys, float32 on the CPU, and their description."""

    info: CheckpointInfo
    learned: dict[str, Tensor]
    keys: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of the file's tensors."""
        return self.learned | ({} if self.keys is None else {KEYS: self.keys})

    def save(self, path: Path) -> None:
        """Write the complete file, or keep the old one.

        Raises:
            FileError: the folder cannot be written, or the disk is full.
        """
        # one metadata key: safetensors writes several in no fixed order
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.tensors.items()}
        metadata = integrity.seal(dataclasses.asdict(self.info), _list_content(tensors))
        write_bytes(path, save(tensors, {_METADATA_KEY: metadata}))

    def to_global_model(self, backbone: Backbone) -> GlobalModel:
        """The server's model of FedAPT, on the backbone's device.

        Raises:
            CheckpointError: another method, or another CLIP than that of the training.
        """
        self.check_backbone(backbone)
        info, device = self.info, backbone.device
        if info.method not in FUSED_METHODS or self.keys is None:
            raise CheckpointError(
                where="the checkpoint",
                found=f"the method {info.method}",
                expected=f"a fused method: {', '.join(FUSED_METHODS)}",
                next_step="train with one of these; `fedapt evaluate` accepts any method",
            )
        return GlobalModel(
            text=prompted_text(backbone, info.classes, self.keys.shape[1]),
            context=self.learned[META_PROMPT].to(device),
            adaptive_network=self.learned[ADAPTIVE_NETWORK].to(device),
            keys=self.keys.to(device),
            temperature=info.config.prompt.temperature,
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
    """Read and check a checkpoint; no code in it is executed.

    Raises:
        CheckpointError: missing, damaged, of another schema, or with impossible tensors.
    """
    if not path.is_file():
        raise _refuse(path, "no such file" if not path.exists() else "not a file")
    if path.stat().st_size > _MAX_BYTES:
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
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        for name in ("classes", "domains", "keys", "clients"):
            fields[name] = tuple(fields[name]) if isinstance(fields[name], list) else None
        # a later version may add fields and settings without a new schema; they are ignored
        known = {field.name for field in dataclasses.fields(CheckpointInfo)}
        fields = {name: value for name, value in fields.items() if name in known}
        fields["config"] = config_from_dict(fields["config"], str(path), skip_unknown=True)
        fields["preprocessing"] = _read_preprocessing(path, fields["preprocessing"])
        keys = tensors.pop(KEYS, None)
        checkpoint = Checkpoint(CheckpointInfo(**fields), tensors, keys)
        _check_info(path, checkpoint.info)
        _check_tensors(path, checkpoint)
        if damage := integrity.find_damage(metadata, _list_content(checkpoint.tensors)):
            raise _refuse(path, damage)
    except (
        ConfigError,
        SafetensorError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        found = (
            error.found if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        )
        raise _refuse(path, f"a damaged file ({found})") from error
    return checkpoint


def _list_content(tensors: dict[str, Tensor]) -> Iterator[integrity.Part]:
    for name, tensor in sorted(tensors.items()):
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


def _read_preprocessing(path: Path, fields: Any) -> Preprocessing:
    try:
        return Preprocessing.from_dict(fields)
    except (ReportedError, TypeError, AttributeError, ValueError, KeyError) as error:
        raise _refuse(path, "metadata with a wrong preprocessing") from error


def _check_info(path: Path, info: CheckpointInfo) -> None:
    texts = (info.model, info.pretrained, info.clip_sha256)
    wrong = []
    if not _is_count(info.rounds):
        wrong.append("rounds")
    if not all(isinstance(t, str) for t in chain(texts, info.classes, info.domains, info.keys)):
        wrong.append("names")
    if not all(_is_count(d) and d < len(info.domains) for d in info.clients):
        wrong.append("clients")
    if wrong:
        raise _refuse(path, f"metadata with a wrong {', '.join(wrong)}")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _check_tensors(path: Path, checkpoint: Checkpoint) -> None:
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype != torch.float32 or not torch.isfinite(tensor).all():
            raise _refuse(path, f"{name} of {tensor.dtype} with NaN, infinity or a wrong dtype")
    info, keys = checkpoint.info, checkpoint.keys
    n_classes, n_keys = len(info.classes), len(info.keys)
    fits = n_classes > 0 and (keys is None or (keys.dim() == 3 and len(keys) == n_keys > 0))
    if info.method in FUSED_METHODS:  # the others are checked when the method is rebuilt
        prompt, network = checkpoint.learned[META_PROMPT], checkpoint.learned[ADAPTIVE_NETWORK]
        fits = (
            fits
            and keys is not None
            and tuple(prompt.shape) in ((n_classes, *keys.shape[1:]), tuple(keys.shape[1:]))
            and network.dim() == 2
            and len(network) == n_keys
        )
    if not fits:
        shapes = {name: list(tensor.shape) for name, tensor in checkpoint.tensors.items()}
        raise _refuse(path, f"tensors {shapes} for {n_classes} classes and {n_keys} keys")


def _refuse(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        where=path,
        found=found,
        expected="a checkpoint.safetensors written by `fedapt train`",
        next_step="check the path, or train again",
    )
