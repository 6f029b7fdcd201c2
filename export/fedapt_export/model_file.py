"""Fused models as files: one ONNX file, whose metadata hold the manifest.

A model above 2 GB, where protobuf ends, has its weights in a second file beside it. The name of the
second file contains the hash of the weights, and the manifest names it: a model never finds the
weights of another.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx

from fedapt.core.errors import ExportError
from fedapt.core.files import hash_file, replace_file, temporary_folder
from fedapt.onnx.types import copy_structure, count_bytes, count_weight_bytes, is_small
from fedapt.onnx.weights import (
    find_location,
    move_weights,
    read_values,
    relocate_weights,
    resolve_weights,
    view_bytes,
)
from fedapt_runtime import Manifest
from fedapt_runtime.integrity import Part
from fedapt_runtime.manifest import METADATA_KEY, parse_manifest
from fedapt_runtime.onnx_file import check_content, open_onnx

MAX_FILE_BYTES = 2_000_000_000  # of weights in one file
# fields of the model, the graph and the tensor
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9


def read_manifest(model: onnx.ModelProto, where: object) -> Manifest:
    """The manifest of a model's `metadata_props`.

    Raises:
        ModelFileError: there is none, or it is damaged or of another schema.
    """
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return parse_manifest(metadata.get(METADATA_KEY), where)


def read_model(path: Path) -> tuple[onnx.ModelProto, Manifest]:
    """A fused model and its manifest; weights in a second file stay there.

    Raises:
        ExportError: it is missing, or no ONNX.
        ModelFileError: it has no manifest, a damaged one, or one of another schema; its weights are
            in a file that the manifest does not name, or not those that it was written for.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors and OSError share no useful base class
        raise ExportError(
            where=path,
            found=f"a file that onnx cannot read ({' '.join(str(error).split())[:200]})",
            expected="a model written by `fedapt export`",
            next_step="check the path",
        ) from error
    content = open_onnx(path)
    manifest = read_manifest(model, path)
    check_content(path, content)
    resolve_weights(model, path.parent)
    return model, manifest


def write_model(model: onnx.ModelProto, manifest: Manifest, out: Path) -> Manifest:
    """Write a fused graph with its manifest, completely or not at all.

    Args:
        model: its metadata are replaced by the manifest.
        manifest: `weights` is set here.
        out: the .onnx file. The weights of an earlier model of this name are removed.

    Returns:
        The manifest as written, without the hash of the content.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    out = Path(os.path.realpath(out))
    with temporary_folder(out.parent) as folder, replace_file(out) as temporary:
        new, weights = folder / "weights", None
        if count_weight_bytes(model) > MAX_FILE_BYTES:
            model, weights = _write_weights(model, new, out.name)
        manifest = dataclasses.replace(manifest, weights=weights)
        metadata = onnx.ModelProto()
        onnx.helper.set_model_props(metadata, {METADATA_KEY: manifest.seal(list_parts(model))})
        with temporary.open("wb") as stream:
            stream.writelines(list_parts(model))
            # the metadata come last: fields of a message may be in any order
            stream.write(metadata.SerializeToString())
        if weights is not None:
            with replace_file(out.with_name(weights["file"])) as place:
                new.rename(place)
    pattern = re.compile(re.escape(out.name) + r"\.[0-9a-f]{16}\.data")
    for path in out.parent.iterdir():
        if pattern.fullmatch(path.name) and (weights is None or path.name != weights["file"]):
            with suppress(OSError):  # it only takes space
                path.unlink()
    return manifest


def count_file_bytes(model: onnx.ModelProto) -> int:
    """Bytes of a model without metadata, if it were one file."""
    return sum(map(len, list_parts(model)))


def _write_weights(
    model: onnx.ModelProto, path: Path, name: str
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Write the large weights of a model.

    Args:
        path: the file to write.
        name: file name of the model.

    Returns:
        The graph with references to them, and the file's final description for the manifest.
    """
    with path.open("wb") as stream:
        moved = move_weights(model, "", stream)
    sha256 = hash_file(path)
    file = f"{name}.{sha256[:16]}.data"
    relocate_weights(moved, lambda _: Path(file))
    return moved, {"file": file, "bytes": path.stat().st_size, "sha256": sha256}


def list_parts(model: onnx.ModelProto) -> Iterator[Part]:
    """The bytes of a serialised model, without its metadata; mapped weights are not copied.

    References to a file in the model's own folder stay references.

    Source: Protocol Buffers, "Encoding"; fields are in the order of their numbers.
    """
    shell = copy_structure(model)
    graph = shell.graph
    nodes = onnx.GraphProto(node=graph.node, name=graph.name).SerializeToString()
    values = onnx.GraphProto(input=graph.input, output=graph.output, value_info=graph.value_info)
    types, tensors = values.SerializeToString(), model.graph.initializer
    follows = [not is_small(tensor) and not _is_reference(tensor) for tensor in tensors]
    heads = [_begin_tensor(*pair) for pair in zip(tensors, follows, strict=True)]
    size = len(nodes) + len(types) + sum(map(len, heads))
    size += sum(count_bytes(tensor) for tensor in itertools.compress(tensors, follows))
    opsets = onnx.ModelProto(opset_import=shell.opset_import).SerializeToString()
    shell.ClearField("graph")
    shell.ClearField("opset_import")
    yield shell.SerializeToString()
    yield _begin(_GRAPH, size) + nodes
    for tensor, head, has_values in zip(tensors, heads, follows, strict=True):
        yield head
        if has_values:
            yield view_bytes(read_values(tensor))
    yield types
    yield opsets


def _begin_tensor(tensor: onnx.TensorProto, has_values: bool) -> bytes:
    """The field of a tensor: all that precedes its values if they follow, else the whole."""
    if not has_values:
        content: bytes = tensor.SerializeToString()
        return _begin(_INITIALIZER, len(content)) + content
    named = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name)
    size = count_bytes(tensor)
    content = bytes(named.SerializeToString()) + _begin(_RAW_DATA, size)
    return _begin(_INITIALIZER, len(content) + size) + content


def _begin(field: int, size: int) -> bytes:
    """Number, wire type and length of a field of bytes."""
    encoded = bytearray([field << 3 | 2])
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)


def _is_reference(tensor: onnx.TensorProto) -> bool:
    location = find_location(tensor)
    return location is not None and not location.is_absolute()
