"""The head of a fused model: everything after the image tower, swappable without the tower.

In the graph the head's tensors are inputs with default values. A head file (.safetensors, kilobytes
to a few megabytes) contains other values, for example after more rounds of training, or with
another class or domain. It contains its own manifest and fits any model with the same CLIP.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.errors import ModelFileError
from fedapt_runtime.integrity import find_damage, list_content
from fedapt_runtime.manifest import METADATA_KEY, Manifest, parse_manifest

Tensor = NDArray[np.float32] | NDArray[np.int64]

_MAX_HEADER_BYTES = 16 << 20
_MAX_BYTES = 2 << 30
_MAX_DIMENSIONS = 8


def complete_head(
    tensors: Mapping[str, NDArray[np.float32]], n_domains: int, n_classes: int
) -> dict[str, Tensor]:
    """All tensors of the head, including those that are computed from its size.

    Args:
        tensors: `text_banks` [D, N * C], `bank_bias` [N, C], `gram` [N, C * N],
            `adaptive_network` [D, N], `router_bias` [N], `router_takes_unit` [] and
            `router_standardised` [] (0 or 1), `temperature` [] and `logit_scale` []; all float32.
        n_domains, n_classes: N and C.

    Returns:
        The same tensors, and `bank_shape` and `gram_shape`, int64 [3], and `other_domains`,
        float32 [].
    """
    sizes: dict[str, Tensor] = {
        "bank_shape": np.array([0, n_domains, n_classes], dtype=np.int64),
        "gram_shape": np.array([0, n_classes, n_domains], dtype=np.int64),
        # denominator of the unbiased variance, whose numerator is 0 for one domain
        "other_domains": np.array(max(1, n_domains - 1), dtype=np.float32),
    }
    return {**tensors, **sizes}


@dataclass(frozen=True)
class HeadFile:
    """A head without a tower.

    Attributes:
        manifest: manifest of a model with this head.
        tensors: float32, see `complete_head`.
    """

    manifest: Manifest
    tensors: dict[str, NDArray[np.float32]]

    def feeds(self) -> dict[str, Tensor]:
        """All values that replace the graph's defaults, see `complete_head`."""
        return complete_head(self.tensors, len(self.manifest.domains), len(self.manifest.classes))

    def manifest_on(self, model: Manifest) -> Manifest:
        """The manifest of a model with this head; the model's manifest describes the graph."""
        names = ("precision", "opset", "mixing", "operators", "weights")
        return dataclasses.replace(self.manifest, **{name: getattr(model, name) for name in names})

    def check_fits(self, model: Manifest, where: object) -> None:
        """Refuse a model with another CLIP, another preprocessing or another mixing.

        Args:
            model: manifest of the model.
            where: the head's file, for messages.

        Raises:
            ModelFileError: the hashes of the CLIP weights, the preprocessing or the mixing differ.
        """
        mine, other = self.manifest.clip.get("sha256", ""), model.clip.get("sha256", "")
        # the depth is not part of the graph, so that of the head applies
        depth = model.preprocessing.depth
        same = dataclasses.replace(self.manifest.preprocessing, depth=depth) == model.preprocessing
        if mine != other or not same:
            raise ModelFileError(
                where=where,
                found=f"a head of a CLIP with hash {mine[:12]}",
                expected=f"a head of a CLIP with hash {other[:12]}, the model's CLIP",
                next_step="export a head of the same CLIP, or the whole model again",
            )
        if self.manifest.mixing != model.mixing:
            raise ModelFileError(
                where=where,
                found=f"a head exported with mixing {self.manifest.mixing}",
                expected=f"{model.mixing}, which is in the model's graph",
                next_step=f"export the head again with mixing {model.mixing}",
            )


def read_head(path: str | Path) -> HeadFile:
    """Read and check a head file that `fedapt export --head-only` wrote.

    Raises:
        ModelFileError: the file is missing, damaged, or not a head.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise _refuse(path, f"a file of {size:,} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise _refuse(path, error.strerror or str(error)) from error
    return parse_head(data, path)


def parse_head(data: bytes, where: object) -> HeadFile:
    """Check the bytes of a head file.

    The safetensors format is a length, a JSON header and raw bytes; reading it needs no package.

    Args:
        data: the content of the file.
        where: the file, for messages.

    Raises:
        ModelFileError: the bytes are damaged, or not a head.
    """
    try:
        header_bytes = int.from_bytes(data[:8], "little")
        if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, len(data) - 8):
            raise _refuse(where, "no safetensors header")
        header: dict[str, Any] = json.loads(data[8 : 8 + header_bytes])
        manifest = header.pop("__metadata__", {}).get(METADATA_KEY)
        body = memoryview(data)[8 + header_bytes :]
        tensors = {name: _read_tensor(body, entry) for name, entry in header.items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _refuse(where, f"a damaged file ({type(error).__name__}: {error})") from error
    if manifest is not None and "text_banks" not in tensors:
        raise ModelFileError(
            where=where,
            found="a checkpoint",
            expected="a head written by `fedapt export --head-only`",
            next_step=f"write its head: fedapt export {where} --head-only --out head.safetensors",
        )
    head = HeadFile(parse_manifest(manifest, where), tensors)
    _check_shapes(where, head)
    if damage := find_damage(manifest, list_content(tensors)):
        raise _refuse(where, damage)
    return head


def _read_tensor(body: memoryview, entry: dict[str, Any]) -> NDArray[np.float32]:
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    if len(shape) > _MAX_DIMENSIONS or not all(type(n) is int for n in [*shape, begin, end]):
        raise ValueError(f"a shape of {len(shape)} sizes, or one that is not a whole number")
    if entry["dtype"] != "F32" or min(shape, default=0) < 0 or not 0 <= begin <= end <= len(body):
        raise ValueError(f"a tensor of {entry['dtype']} {shape} at {begin} to {end}")
    if end - begin != 4 * math.prod(shape):
        raise ValueError(f"{end - begin} bytes for the shape {shape}")
    return np.frombuffer(body[begin:end], dtype="<f4").reshape(shape)


def _check_shapes(where: object, head: HeadFile) -> None:
    n_classes, n_domains = len(head.manifest.classes), len(head.manifest.domains)
    found = {name: list(tensor.shape) for name, tensor in head.tensors.items()}
    width = found.get("adaptive_network", [0])[0]
    expected = {
        "text_banks": [width, n_domains * n_classes],
        "bank_bias": [n_domains, n_classes],
        "gram": [n_domains, n_classes * n_domains],
        "adaptive_network": [width, n_domains],
        "router_bias": [n_domains],
        "router_takes_unit": [],
        "router_standardised": [],
        "temperature": [],
        "logit_scale": [],
    }
    if found != expected:
        raise _refuse(where, f"tensors {found} for {n_classes} classes and {n_domains} domains")
    if not all(np.isfinite(tensor).all() for tensor in head.tensors.values()):
        raise _refuse(where, "tensors with NaN or infinity")


def _refuse(where: object, found: str) -> ModelFileError:
    return ModelFileError(
        where=where,
        found=found,
        expected="a head written by `fedapt export --head-only`",
        next_step="check the path, or export the head again",
    )
