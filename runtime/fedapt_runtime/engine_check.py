"""Comparison of a TensorRT engine with its ONNX model, on a machine with the GPU, without torch.

An engine built by `trtexec` has no description. It gets one after it has passed.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.atomic import replace_file
from fedapt_runtime.backends.base import Backend
from fedapt_runtime.backends.cuda import Gpu
from fedapt_runtime.backends.engine_file import (
    EngineFile,
    describe_engine,
    description_path,
    hash_file,
    read_engine_file,
)
from fedapt_runtime.backends.engine_plan import EnginePlan, import_library
from fedapt_runtime.backends.ort_backend import OrtBackend
from fedapt_runtime.backends.tensorrt import TensorRtBackend
from fedapt_runtime.engine_comparison import EngineReport, compare_engine
from fedapt_runtime.errors import InputError, ModelFileError, OutputError
from fedapt_runtime.manifest import Manifest
from fedapt_runtime.options import LoadOptions
from fedapt_runtime.pipeline import decode_one, name_of
from fedapt_runtime.sources import find_images


def check_engine(path: Path, model: Path, images: Sequence[str] = ()) -> EngineReport:
    """Compare an engine with the model from which it was built.

    An engine without a description, as `trtexec` builds it, gets one when it has passed.

    Args:
        path: the .engine file.
        model: the .onnx file; ONNX Runtime runs it on the CPU.
        images: paths for `sources.find_images`; the first images, up to the engine's maximum batch,
            are used. An empty sequence uses noise.

    Raises:
        ParityError: the engine does not compute what the model computes.
        ImageError: an image cannot be read.
        InputError: the paths have fewer than two images.
        ModelFileError: the engine is of another model; else see `TensorRtBackend`.
        OutputError: the engine's description cannot be written.
        MissingDependency, RuntimeFailure: see `TensorRtBackend`.
    """
    reference = OrtBackend(model, LoadOptions(device="cpu"))
    sha256 = hash_file(model)
    beside = description_path(path)
    fields: dict[str, Any] | None = None
    if path.is_file() and not beside.exists():
        fields = describe_built_engine(path, reference.manifest, sha256)
        engine_file = describe_engine(path, fields)
    else:
        engine_file = read_engine_file(path)
    if engine_file.onnx_sha256 != sha256:
        raise ModelFileError(
            where=path,
            found="an engine built from a model with hash "
            f"{engine_file.onnx_sha256[:12] or '(unknown)'}",
            expected=f"{sha256[:12]}, the hash of {model}",
            next_step="compare the engine with the model that it was built from",
        )
    pixels = None
    if images:
        pixels = _load_images(images, engine_file)
    report = compare_with_model(engine_file, reference, pixels)
    if fields is not None:
        try:
            write_description(beside, fields | {"verified": report.to_dict()})
        except OSError as error:
            raise OutputError(
                where=beside,
                found=error.strerror or str(error),
                expected="a file that can be written: the runtime reads it with the engine",
                next_step="check the folder, its permissions and the free space",
            ) from error
    return report


def _load_images(paths: Sequence[str], engine_file: EngineFile) -> NDArray[np.uint8]:
    found = itertools.islice(find_images(paths), max(2, engine_file.max_batch))
    pixels = []
    for index, image in enumerate(found):
        decoded = decode_one(image, name_of(image, index), engine_file.manifest.preprocessing)
        if decoded.error is not None:
            raise decoded.error
        pixels.append(decoded.pixels)
    if len(pixels) < 2:
        raise InputError(
            where=", ".join(paths),
            found=f"{len(pixels)} images",
            expected="two or more, to compare different orders of rows",
            next_step="pass more images, or omit the images to use noise",
        )
    return np.stack([array for array in pixels if array is not None])


def describe_built_engine(path: Path, manifest: Manifest, onnx_sha256: str) -> dict[str, Any]:
    """The description of an engine that TensorRT has built for the GPU of this machine.

    Args:
        path: the .engine file.
        manifest: manifest of the model that it was built from.
        onnx_sha256: hash of that model's file.

    Returns:
        The fields of the .engine.json file, with `verified` None.

    Raises:
        ModelFileError: the installed TensorRT refuses the engine.
        MissingDependency: TensorRT or cuda-bindings is not installed.
        RuntimeFailure: there is no GPU.
    """
    trt, gpu = import_library("tensorrt"), Gpu()
    fields: dict[str, Any] = {
        "flavour": "tensorrt",
        "library": {"name": "tensorrt", "version": trt.__version__},
        "compute_capabilities": [gpu.capability],
        "batch": [1, 1, 1],
        "onnx_sha256": onnx_sha256,
        "engine_sha256": hash_file(path),
        "verified": None,
        "manifest": dataclasses.asdict(manifest),
    }
    with gpu.current():
        fields["batch"] = EnginePlan(trt, describe_engine(path, fields)).read_profile()
    return fields


def write_description(path: Path, fields: dict[str, Any]) -> None:
    """Write an engine's description, completely or not at all.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(fields, indent=2) + "\n", "utf-8")


def compare_with_model(
    engine_file: EngineFile, reference: Backend, images: NDArray[np.uint8] | None = None
) -> EngineReport:
    """Compare an engine with its model, and refuse it if they differ.

    Args:
        engine_file: the engine.
        reference: the model in ONNX Runtime.
        images: uint8 [n, height, width, 3]; None, or fewer than two images, uses noise.

    Raises:
        ParityError: the engine does not compute what the model computes.
        ModelFileError, MissingDependency, RuntimeFailure: see `TensorRtBackend`.
    """
    source = "noise"
    if images is None or len(images) < 2:
        size = reference.manifest.preprocessing.size
        generator = np.random.default_rng(0)
        images = generator.integers(
            0, 256, (max(2, engine_file.max_batch), *size, 3), dtype=np.uint8
        )
    else:
        source = f"{len(images)} images"
    sizes = (engine_file.min_batch, engine_file.opt_batch, engine_file.max_batch)
    report = compare_engine(TensorRtBackend(engine_file), reference, images, *sizes)
    report = dataclasses.replace(report, images=source)
    report.check(reference.manifest.precision, engine_file.path)
    return report
