"""An engine and the JSON beside it: what it is, and whether it belongs here.

The plan itself is a foreign binary that says nothing of classes or origin, and TensorRT's own
words for an engine of another version or GPU are hard to read. So everything that can be known
without a GPU is checked first, from the sidecar.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedapt_runtime.backends.border import check_model_file
from fedapt_runtime.errors import ModelFileError, RuntimeFailure
from fedapt_runtime.manifest import Manifest, parse_manifest

FLAVOURS = {"rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}
_ANY_TARGET = "default"


@dataclass(frozen=True)
class EngineFile:
    """What stands beside a plan.

    Attributes:
        path: the plan.
        flavour: a key of `FLAVOURS`: which library built it and can run it.
        version: of that library.
        capabilities: GPUs that it was built for, `sm89` and the like; or `default`.
        min_batch, max_batch: the sizes that it takes.
        manifest: of the model inside.
    """

    path: Path
    flavour: str
    version: str
    capabilities: tuple[str, ...]
    min_batch: int
    max_batch: int
    manifest: Manifest

    @property
    def library(self) -> str:
        """The library's name, for messages."""
        return FLAVOURS[self.flavour]

    def check_version(self, installed: str) -> None:
        """Refuse a TensorRT of another version, which cannot read the plan.

        TensorRT-RTX says by itself, from the plan's header, what it can read.

        Raises:
            ModelFileError: the versions differ in their first three numbers.
        """
        if self.flavour == "tensorrt" and _release(installed) != _release(self.version):
            raise ModelFileError(
                where=self.path,
                found=f"an engine of TensorRT {self.version}",
                expected=f"one of {installed}, the version that is installed",
                next_step=f"build the engine again, or pip install tensorrt=={self.version}",
            )

    def check_gpu(self, capability: str, name: str) -> None:
        """Refuse a GPU that the engine was not built for.

        Args:
            capability: of the GPU here, `sm89`.
            name: of the GPU here.

        Raises:
            RuntimeFailure: the engine has other targets.
        """
        if _ANY_TARGET not in self.capabilities and capability not in self.capabilities:
            raise RuntimeFailure(
                where=self.path,
                found=f"{name}, a GPU of {capability}",
                expected=f"one of {', '.join(self.capabilities)}, for which the engine was built",
                next_step=f"build the engine for {capability}, or run model.onnx",
            )


def _release(version: str) -> list[str]:
    return version.split(".")[:3]


def read_engine_file(path: Path) -> EngineFile:
    """Read and check the sidecar of an engine, and that it is of this very engine.

    Raises:
        ModelFileError: no engine, no sidecar, a damaged one, or one of another engine.
    """
    check_model_file(path)
    beside = path.with_name(path.name + ".json")
    try:
        fields: dict[str, Any] = json.loads(beside.read_text("utf-8"))
        flavour, minimum, maximum = (
            fields["flavour"],
            int(fields["batch"][0]),
            int(fields["batch"][-1]),
        )
        if flavour not in FLAVOURS or not 1 <= minimum <= maximum:
            raise ValueError(f"flavour {flavour!r}, batches of {minimum} to {maximum}")
        manifest = parse_manifest(json.dumps(fields["manifest"]), beside)
        engine = EngineFile(
            path=path,
            flavour=flavour,
            version=str(fields["library"]["version"]),
            capabilities=tuple(str(name) for name in fields["compute_capabilities"]),
            min_batch=minimum,
            max_batch=maximum,
            manifest=manifest,
        )
        described = str(fields["engine_sha256"])
    except (AttributeError, IndexError, KeyError, OSError, RecursionError) as error:
        raise _refuse(beside, type(error).__name__) from error
    except (TypeError, ValueError) as error:
        raise _refuse(beside, str(error)) from error
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 != described:
        raise ModelFileError(
            where=path,
            found=f"an engine of hash {sha256[:12]}",
            expected=f"{described[:12]}, which {beside.name} describes",
            next_step="copy both files together, or build both again",
        )
    return engine


def _refuse(beside: Path, found: str) -> ModelFileError:
    return ModelFileError(
        where=beside,
        found=f"no readable description of the engine ({found})",
        expected="the JSON that `fedapt export --trt` writes beside an engine",
        next_step="copy it here together with the engine, or build both again",
    )
