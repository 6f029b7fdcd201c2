"""A TensorRT engine and its JSON description, checked against this machine.

The plan is a binary of TensorRT's without class names or origin. TensorRT's messages about an
engine of another version or GPU are hard to read. This module therefore first checks, from the
description, everything that can be checked without a GPU.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedapt_runtime.backends.model_checks import check_model_file
from fedapt_runtime.errors import ModelFileError, RuntimeFailure
from fedapt_runtime.foreign import translate
from fedapt_runtime.manifest import Manifest, parse_manifest

FLAVOURS = {"rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}
_ANY_TARGET = "default"


@dataclass(frozen=True)
class EngineFile:
    """The description beside a TensorRT engine's plan.

    Attributes:
        path: file of the plan.
        flavour: a key of `FLAVOURS`: the library that built the plan and can run it.
        version: version of that library.
        capabilities: GPUs that the plan was built for, such as `sm89`; or `default`.
        min_batch, opt_batch, max_batch: minimum, optimum and maximum size of a batch.
        onnx_sha256: hash of the ONNX model that the plan was built from; empty if unknown.
        manifest: manifest of the model inside.
    """

    path: Path
    flavour: str
    version: str
    capabilities: tuple[str, ...]
    min_batch: int
    opt_batch: int
    max_batch: int
    onnx_sha256: str
    manifest: Manifest

    @property
    def library(self) -> str:
        """The library's name, for messages."""
        return FLAVOURS[self.flavour]

    def check_version(self, installed: str) -> None:
        """Refuse a TensorRT of another version, which cannot read the plan.

        TensorRT-RTX checks the plan's header itself.

        Args:
            installed: version of the installed library.

        Raises:
            ModelFileError: the versions differ in their first three numbers.
        """
        if self.flavour == "tensorrt" and _release(installed) != _release(self.version):
            raise ModelFileError(
                where=self.path,
                found=f"an engine of TensorRT {self.version}",
                expected=f"an engine of TensorRT {installed}, the installed version",
                next_step=f"build the engine again, or pip install tensorrt=={self.version}",
            )

    def check_gpu(self, capability: str, name: str) -> None:
        """Refuse a GPU that the engine was not built for.

        Args:
            capability: compute capability of this machine's GPU, such as `sm89`.
            name: name of this machine's GPU.

        Raises:
            RuntimeFailure: this GPU is not a target of the engine.
        """
        if _ANY_TARGET not in self.capabilities and capability not in self.capabilities:
            raise RuntimeFailure(
                where=self.path,
                found=f"{name}, a GPU with {capability}",
                expected=f"a GPU with {' or '.join(self.capabilities)}, the engine's targets",
                next_step=f"build the engine for {capability}, or run model.onnx",
            )


def _release(version: str) -> list[str]:
    return version.split(".")[:3]


def read_engine_file(path: Path) -> EngineFile:
    """Read an engine's description, and check it and the engine's hash.

    Raises:
        ModelFileError: the engine or its description is missing, or the description is damaged or
            of another engine.
    """
    check_model_file(path)
    beside = description_path(path)
    with translate(
        ModelFileError,
        where=beside,
        found="no readable description of the engine",
        expected="the JSON that `fedapt export --trt` writes beside an engine",
        next_step="copy it here together with the engine, or build both again",
    ):
        fields: dict[str, Any] = json.loads(beside.read_text("utf-8"))
        engine = describe_engine(path, fields)
        described = str(fields["engine_sha256"])
    sha256 = hash_file(path)
    if sha256 != described:
        raise ModelFileError(
            where=path,
            found=f"an engine with hash {sha256[:12]}",
            expected=f"hash {described[:12]}, which {beside.name} states",
            next_step="copy both files together, or build both again",
        )
    return engine


def description_path(path: Path) -> Path:
    """The path of an engine's description: model.engine.json beside model.engine."""
    return path.with_name(path.name + ".json")


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_engine(path: Path, fields: dict[str, Any]) -> EngineFile:
    """The typed description of an engine.

    Args:
        path: the .engine file.
        fields: the JSON of the description.

    Raises:
        Exception: of any class: a field is missing or damaged.
        ModelFileError: the manifest in it is damaged.
    """
    flavour, batches = fields["flavour"], fields["batch"]
    minimum, maximum = int(batches[0]), int(batches[-1])
    if flavour not in FLAVOURS or not 1 <= minimum <= maximum:
        raise ValueError(f"flavour {flavour!r}, batches of {minimum} to {maximum}")
    return EngineFile(
        path=path,
        flavour=flavour,
        version=str(fields["library"]["version"]),
        capabilities=tuple(str(name) for name in fields["compute_capabilities"]),
        min_batch=minimum,
        opt_batch=int(batches[len(batches) // 2]),
        max_batch=maximum,
        onnx_sha256=str(fields.get("onnx_sha256", "")),
        manifest=parse_manifest(json.dumps(fields["manifest"]), description_path(path)),
    )
