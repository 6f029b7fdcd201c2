"""Weights of a graph that stay in a file and are mapped into memory when they are read.

A graph refers to its large weights by path, offset and length (ONNX's external data). To copy, fuse
or check it then costs kilobytes, and it may exceed 2 GiB, where protobuf ends.

Source: ONNX, "External data".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from fedapt.core.files import replace_file
from fedapt.onnx.types import copy_structure, count_bytes, is_small
from fedapt_runtime.backends.ort import import_onnxruntime, open_session

_ALIGNMENT = 4096  # of a memory page: mapped weights are not copied


def read_values(tensor: onnx.TensorProto) -> NDArray[Any]:
    """The values of a weight; those in a file are mapped, read-only.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file ends before the weight.
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    path, offset = _find(tensor)
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(path, kind, "r", offset, tuple(tensor.dims))


def move_weights(model: onnx.ModelProto, location: str, stream: BinaryIO) -> onnx.ModelProto:
    """Write the large weights of a model to a file.

    Args:
        model: its metadata are left out of the result.
        location: path of the file, for the references.
        stream: the file, at its start.

    Returns:
        The same graph, with references in place of the weights that were written.
    """
    moved = copy_structure(model)
    for tensor in model.graph.initializer:
        if is_small(tensor):
            moved.graph.initializer.append(tensor)
            continue
        stream.write(bytes(-stream.tell() % _ALIGNMENT))
        reference = moved.graph.initializer.add(
            name=tensor.name,
            data_type=tensor.data_type,
            dims=tensor.dims,
            data_location=TensorProto.EXTERNAL,
        )
        place = {"location": location, "offset": stream.tell(), "length": count_bytes(tensor)}
        for key, value in place.items():
            reference.external_data.add(key=key, value=str(value))
        stream.write(view_bytes(read_values(tensor)))
    return moved


def hold_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with all weights in memory."""
    whole = copy_structure(model)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor = numpy_helper.from_array(read_values(tensor), tensor.name)
        whole.graph.initializer.append(tensor)
    return whole


def view_bytes(values: NDArray[Any]) -> memoryview:
    """The bytes of an array, without a copy where they are contiguous."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def save_with_weights(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph to `path` and its large weights to a file of the same name with `.data`.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    data = path.with_name(f"{path.name}.data")
    with replace_file(data) as temporary, temporary.open("wb") as stream:
        moved = move_weights(model, data.name, stream)
    with replace_file(path) as temporary:
        onnx.save(moved, temporary)


def map_weights(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The same model with its large weights in a file; see `save_with_weights`."""
    save_with_weights(model, path)
    return load_with_weights(path)


def load_with_weights(path: Path) -> onnx.ModelProto:
    """A graph whose references to weights in files beside it hold whole paths.

    Raises:
        Exception: the file is missing or damaged; protobuf's errors have no common base.
        ValueError: a weight is not in its file.
    """
    model = onnx.load(path, load_external_data=False)
    resolve_weights(model, path.parent)
    return model


def resolve_weights(model: onnx.ModelProto, folder: Path) -> None:
    """Put whole paths, in place, into the references of a graph from a folder.

    Raises:
        OSError: a file is missing.
        ValueError: a weight is not in its file.
    """
    relocate_weights(model, lambda path: folder / path)
    for tensor in filter(find_location, model.graph.initializer):
        data, offset = _find(tensor)
        if data.stat().st_size < offset + count_bytes(tensor):
            raise ValueError(f"{data} ends before {tensor.name}")


def relocate_weights(model: onnx.ModelProto, relocate: Callable[[Path], Path]) -> None:
    """Replace, in place, the path in every reference to a weight."""
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(relocate(Path(entry.value)))


def find_location(tensor: onnx.TensorProto) -> Path | None:
    """The path in a reference; None for a weight in memory."""
    places = [entry.value for entry in tensor.external_data if entry.key == "location"]
    return Path(places[0]) if places else None


def open_model(model: onnx.ModelProto, device: str, where: object) -> Any:
    """A session of ONNX Runtime that maps the weights which the model refers to.

    Args:
        model: references to weights, if any, name files in one folder.
        device, where: see `open_session`.

    Raises:
        ModelFileError, RuntimeFailure: see `open_session`.
    """
    paths = map(find_location, model.graph.initializer)
    folders = {path.parent for path in paths if path is not None}
    folder = folders.pop() if folders else None
    if folders:
        raise AssertionError("weights in several folders")
    if folder is not None:
        relative = copy_structure(model)
        relative.graph.initializer.extend(model.graph.initializer)
        relocate_weights(relative, lambda path: Path(path.name))
        model = relative
    return open_session(
        import_onnxruntime(), model.SerializeToString(), device, where, weights=folder
    )


def _find(tensor: onnx.TensorProto) -> tuple[Path, int]:
    """The file of a weight, and the place where the weight starts in it."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return Path(entries["location"]), int(entries.get("offset", 0))
