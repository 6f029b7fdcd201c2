"""Inspection of an ONNX file before a library opens it: its metadata, its content, its weights.

The file is a protobuf message: fields with a number, a wire type and a value. Only messages that
can hold a tensor are parsed; other values are skipped by their length.

Source: Protocol Buffers, "Encoding"; ONNX, `onnx.proto` (numbers of the fields).
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedapt_runtime.errors import ModelFileError
from fedapt_runtime.integrity import find_damage
from fedapt_runtime.manifest import METADATA_KEY, is_weights

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # wire types
_METADATA = 14  # field of the model; each entry has a key (1) and a value (2)
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of a tensor
_OPERATOR = 4  # field of a node
# message -> number of a field -> the message in it, for messages that can contain tensors
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}


@dataclass(frozen=True)
class WeightsFile:
    """The second file of a model above 2 GB, as the model's manifest describes it.

    Attributes:
        file: its name, in the folder of the model.
        bytes: its size.
        sha256: hash of its content, hexadecimal.
    """

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class OnnxFile:
    """Content of an ONNX file.

    Attributes:
        metadata: content of `metadata_props`.
        content: the file's bytes without `metadata_props`, in parts.
        operators: names of the operators that the nodes have.
        weights: the file that holds other weights, if there is one.
    """

    metadata: dict[str, str]
    content: tuple[memoryview, ...]
    operators: frozenset[str]
    weights: WeightsFile | None


def open_onnx(path: Path) -> OnnxFile:
    """Read a model's structure, and refuse what a library must not open.

    A library that loads a model opens any path that the file names. Here the only such path is a
    file in the same folder that the manifest describes. Its hash is not checked, see
    `check_content`.

    Raises:
        ModelFileError: the file cannot be read, is not an ONNX model, or names other files.
    """
    try:
        with path.open("rb") as stream:
            if not path.stat().st_size:
                raise ValueError("an empty file")
            # the map stays open while a returned part exists
            data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
            found = read_onnx(data)
    except OSError as error:
        raise _refuse(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise _refuse(path, str(error)) from error
    if found.weights is not None:
        _check_size(path, found.weights)
    return found


def check_content(path: Path, found: OnnxFile) -> None:
    """Refuse a model whose content does not match the hashes in its manifest.

    Args:
        path: the file.
        found: its content, from `open_onnx`.

    Raises:
        ModelFileError: the file's hash differs, or that of its weights.
    """
    if damage := find_damage(found.metadata[METADATA_KEY], found.content):
        raise _refuse(path, damage)
    if found.weights is not None:
        with (path.parent / found.weights.file).open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        if sha256 != found.weights.sha256:
            damage = f"{found.weights.file} of hash {sha256[:12]}, not {found.weights.sha256[:12]}"
            raise _refuse(path, damage)


def _check_size(path: Path, weights: WeightsFile) -> None:
    try:
        size = (path.parent / weights.file).stat().st_size
    except OSError:
        raise ModelFileError(
            where=path,
            found=f"no file {weights.file} beside it",
            expected="the weights of this model, in the same folder and under this name",
            next_step=f"copy {weights.file} into the folder of the model",
        ) from None
    if size != weights.bytes:
        raise _refuse(path, f"{weights.file} with {size:,} bytes, not {weights.bytes:,}")


def read_onnx(data: memoryview) -> OnnxFile:
    """Metadata and content of a model's bytes.

    Raises:
        ValueError: the bytes are not a protobuf message, or a tensor's values are in a file that
            the manifest does not name.
    """
    metadata: dict[str, str] = {}
    content: list[memoryview] = []
    operators: set[bytes] = set()
    places: dict[int, dict[str, str]] = {}  # by the start of the tensor: where its values are
    todo: list[tuple[str, int, int]] = []
    done = 0
    for number, begin, value, end in _fields(data, 0, len(data)):
        if number == _METADATA:
            content.append(data[done:begin])
            done = end
            name, text = _read_entry(data, value, end)
            metadata[name] = text
        elif number in _INSIDE["model"]:
            todo.append((_INSIDE["model"][number], value, end))
    content.append(data[done:])
    while todo:
        message, begin, end = todo.pop()
        inside = _INSIDE[message]
        for number, _, value, stop in _fields(data, begin, end):
            if number in inside:
                todo.append((inside[number], value, stop))
            elif message == "tensor" and number == _EXTERNAL_DATA:
                key, text = _read_entry(data, value, stop)
                places.setdefault(begin, {})[key] = text
            elif message == "tensor" and number == _DATA_LOCATION and any(data[value:stop]):
                places.setdefault(begin, {})
            elif message == "node" and number == _OPERATOR:
                operators.add(bytes(data[value:stop]))
    names = frozenset(name.decode("utf-8", "replace") for name in operators)
    weights = _read_weights(metadata) if places else None
    for place in places.values():
        _check_place(place, weights)
    return OnnxFile(metadata, tuple(content), names, weights)


def _read_weights(metadata: Mapping[str, str]) -> WeightsFile | None:
    """The weights file that the manifest describes, if it does so properly."""
    try:
        fields = json.loads(metadata[METADATA_KEY])["weights"]
        weights = WeightsFile(fields["file"], fields["bytes"], fields["sha256"])
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    return weights if is_weights(fields) else None


def _check_place(place: Mapping[str, str], weights: WeightsFile | None) -> None:
    if weights is None or place.get("location") != weights.file:
        raise ValueError("weights that are in another file")
    numbers = [place.get(key, "0") for key in ("offset", "length")]
    if not all(re.fullmatch("[0-9]{1,18}", number) for number in numbers):
        raise ValueError("a weight whose place in its file is not a number")
    if sum(map(int, numbers)) > weights.bytes:
        raise ValueError(f"a weight beyond the end of {weights.file}")


def _read_entry(data: memoryview, begin: int, end: int) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    entry = {n: bytes(data[v:e]) for n, _, v, e in _fields(data, begin, end)}
    name, text = entry.get(1, b""), entry.get(2, b"")
    return name.decode("utf-8", "replace"), text.decode("utf-8", "surrogateescape")


def _fields(data: memoryview, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """For each field of a message: number, and start of the field, the value and the next field."""
    at = begin
    while at < end:
        start = at
        tag, at = _read_varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            size, at = _read_varint(data, at, end)
        elif wire == _VARINT:
            size = _read_varint(data, at, end)[1] - at
        elif wire in (_EIGHT, _FOUR):
            size = 8 if wire == _EIGHT else 4
        else:
            raise ValueError("a file that is not an ONNX model (a field of an unknown kind)")
        if size > end - at or number == 0:
            raise ValueError("a file that is not an ONNX model (a field that is cut off)")
        yield number, start, at, at + size
        at += size


def _read_varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a file that is not an ONNX model (a number that is cut off)")


def _refuse(path: Path, found: str) -> ModelFileError:
    return ModelFileError(
        where=path,
        found=found,
        expected="a model written by `fedapt export`, complete",
        next_step="check the path, copy the file again, or export the model again",
    )
