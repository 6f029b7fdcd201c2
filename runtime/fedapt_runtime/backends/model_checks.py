"""Checks of a model at load: its file, the names and types of its graph, and one black image.

Every backend runs these checks once, when it loads a model, and not again while it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedapt_runtime.backends.base import Backend, Outputs
from fedapt_runtime.errors import ModelFileError, ReportedError, first_line
from fedapt_runtime.machine import may_saturate_int8
from fedapt_runtime.manifest import METADATA_KEY, Manifest, parse_manifest
from fedapt_runtime.onnx_file import open_onnx

# dtype, and shape without the batch axis; None is a free size
Slot = tuple[str, list[int | None]]


def check_model_file(path: Path) -> None:
    """Refuse a path that is not a file.

    Raises:
        ModelFileError: there is no such file, or the path is a folder.
    """
    if not path.is_file():
        raise ModelFileError(
            where=path,
            found="no such file" if not path.exists() else "not a file",
            expected="a model written by `fedapt export`",
            next_step="check the path",
        )


def read_manifest(path: Path) -> Manifest:
    """The manifest of an .onnx file, without a backend.

    Raises:
        ModelFileError: there is no such file, or it is not ONNX or not a fedapt model.
    """
    check_model_file(path)
    return parse_manifest(open_onnx(path).metadata.get(METADATA_KEY), path)


def describe_int8(manifest: Manifest) -> str:
    """A warning, for `description`, if this processor's int8 products may saturate; else empty."""
    report = manifest.parity.get("against_fp32")
    has_room = isinstance(report, dict) and report.get("reduced_range") is True
    if manifest.precision != "int8" or has_room or not may_saturate_int8():
        return ""
    return ", whose int8 products may saturate (no VNNI; export with a reduced range)"


def check_signature(
    inputs: Mapping[str, Slot], outputs: Mapping[str, Slot], manifest: Manifest, where: object
) -> None:
    """Refuse a graph whose inputs or outputs have other names, dtypes or ranks.

    Args:
        inputs: name -> slot, for inputs without a default value.
        outputs: name -> slot.
        manifest: manifest of the model.
        where: the file, for messages.

    Raises:
        ModelFileError: `fedapt export` does not write such graphs.
    """
    height, width = manifest.preprocessing.size
    as_expected = dict(inputs) == {"images": ("uint8", [height, width, 3])}
    for name in Outputs._fields:
        dtype, shape = outputs.get(name, ("", []))
        as_expected = as_expected and dtype == "float32" and len(shape) == 1
    if not as_expected:
        raise ModelFileError(
            where=where,
            found=f"inputs {dict(inputs)} and outputs {dict(outputs)}",
            expected=f"images uint8 [batch, {height}, {width}, 3] and, float32,"
            f" {', '.join(Outputs._fields)}",
            next_step="export the model again with `fedapt export`",
        )


def probe(backend: Backend, where: object) -> None:
    """Classify a black image. This first run allocates memory and checks the output sizes.

    Args:
        backend: the loaded model.
        where: the file, for messages.

    Raises:
        ModelFileError: the graph does not run, or has other numbers of classes or domains.
        ReportedError: the backend's own error.
    """
    manifest = backend.manifest
    counts = [len(manifest.classes), len(manifest.domains)]
    try:
        outputs = backend.run(np.zeros((1, *manifest.preprocessing.size, 3), dtype=np.uint8))
    except ReportedError:
        raise
    except Exception as error:  # the libraries' exceptions share no public base class
        raise ModelFileError(
            where=where,
            found=f"a graph that does not run ({first_line(error)})",
            expected="a model, and a head of the same CLIP",
            next_step="export both again with `fedapt export`",
        ) from error
    columns = [output.shape[-1] for output in outputs[:2]]
    if columns != counts:
        raise ModelFileError(
            where=where,
            found=f"a graph of {columns[0]} classes and {columns[1]} domains",
            expected=f"{counts[0]} and {counts[1]}, as its manifest names them",
            next_step="export the model again with `fedapt export`",
        )
