"""Head files: writing one, and inserting one into a model of the same CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import numpy_helper
from safetensors.numpy import save

from fedapt.core.errors import ExportError
from fedapt.core.files import claim_file, write_bytes
from fedapt.model.head import Head
from fedapt_export.head import head_tensors
from fedapt_export.model_file import read_model, write_model
from fedapt_runtime import Manifest
from fedapt_runtime.errors import ModelFileError
from fedapt_runtime.head import Tensor, read_head
from fedapt_runtime.integrity import list_content
from fedapt_runtime.manifest import METADATA_KEY


def write_head(head: Head, manifest: Manifest, out: Path) -> None:
    """Write a head file, completely or not at all.

    Args:
        head: the head.
        manifest: manifest of the model that it belongs to.
        out: a .safetensors file.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    tensors = head_tensors(head)
    write_bytes(out, save(tensors, {METADATA_KEY: manifest.seal(list_content(tensors))}))


def _check_width(model: onnx.ModelProto, values: Mapping[str, Tensor], where: Path) -> None:
    """Refuse a head for features of another width, whatever its manifest says."""
    name = "adaptive_network"
    expected = [list(t.dims) for t in model.graph.initializer if t.name == name]
    width = values[name].shape[0]
    if expected and expected[0][0] != width:
        raise ModelFileError(
            where=where,
            found=f"a head for features of width {width}",
            expected=f"{expected[0][0]}, the width of the model's features",
            next_step="export a head of the same CLIP",
        )


def swap_head(model_path: Path, head_path: Path, out: Path) -> Manifest:
    """Put a head into a fused model of the same CLIP; the tower's bytes do not change.

    Args:
        model_path: the .onnx file.
        head_path: the head's .safetensors file.
        out: the .onnx file to write, which may be the model itself.

    Returns:
        The manifest of the new model: the head's manifest with the fields of the graph.

    Raises:
        ExportError: the model is missing, damaged, or not a fedapt model.
        ModelFileError: the head is damaged or of another CLIP.
        FileError: another job writes the output, or it cannot be written.
    """
    with claim_file(out):
        return _swap_head(model_path, head_path, out)


def _swap_head(model_path: Path, head_path: Path, out: Path) -> Manifest:
    model, before = read_model(model_path)
    head = read_head(head_path)
    head.check_fits(before, head_path)
    values = head.feeds()
    _check_width(model, values, head_path)
    for initializer in model.graph.initializer:
        if initializer.name in values:
            value = values.pop(initializer.name)
            initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
    if values:
        raise ExportError(
            where=model_path,
            found=f"a graph without {', '.join(sorted(values))}",
            expected="a model whose head can be swapped",
            next_step="export the model again with `fedapt export`",
        )
    return write_model(model, head.manifest_on(before), out)
