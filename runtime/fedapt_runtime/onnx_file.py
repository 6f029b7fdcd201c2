"""Inspection of an ONNX file before a library opens it: its metadata, its content, its weights.

The file is a protobuf message: fields with a number, a wire type and a value. Only messages that
can hold a tensor are parsed; other values are skipped by their length.

Source: Protocol Buffers, "Encoding"; ONNX, `onnx.proto` (numbers of the fields).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedapt_runtime.errors import ModelFileError
from fedapt_runtime.integrity import find_damage

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
class OnnxFile:
    """Content of an ONNX file.

    Attributes:
        metadata: content of `metadata_props`.
        content: the file's bytes without `metadata_props`, in parts.
        operators: names of the operators that the nodes have.
    """

    metadata: dict[str, str]
    content: tuple[memoryview, ...]
    operators: frozenset[str]


def check_one_file(path: Path) -> None:
    """Refuse a file that is not an ONNX model, or has weights in other files.

    A library that loads such a model would open any path that the file names.

    Raises:
        ModelFileError: the file cannot be read, is not an ONNX model, or names other files.
    """
    _read(path)


def read_metadata(path: Path) -> dict[str, str]:
    """The `metadata_props` of a model.

    Raises:
        ModelFileError: see `check_one_file`.
    """
    return _read(path).metadata


def read_operators(path: Path) -> frozenset[str]:
    """The names of a model's operators, such as `Conv`.

    Raises:
        ModelFileError: see `check_one_file`.
    """
    return _read(path).operators


def check_content(path: Path, key: str) -> None:
    """Refuse a model whose content does not match the hash in its description.

    Args:
        key: key of the description in `metadata_props`, see `integrity.seal`.

    Raises:
        ModelFileError: the hashes differ.
    """
    found = _read(path)
    if damage := find_damage(found.metadata[key], found.content):
        raise _refuse(path, damage)


def _read(path: Path) -> OnnxFile:
    try:
        with path.open("rb") as stream:
            if not path.stat().st_size:
                raise ValueError("an empty file")
            # the map stays open while a returned part exists
            return read_onnx(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)))
    except OSError as error:
        raise _refuse(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise _refuse(path, str(error)) from error


def read_onnx(data: memoryview) -> OnnxFile:
    """Metadata and content of a model's bytes.

    Raises:
        ValueError: the bytes are not a protobuf message, or a tensor's values are in another file.
    """
    metadata: dict[str, str] = {}
    content: list[memoryview] = []
    operators: set[bytes] = set()
    todo: list[tuple[str, int, int]] = []
    done = 0
    for number, begin, value, end in _fields(data, 0, len(data)):
        if number == _METADATA:
            content.append(data[done:begin])
            done = end
            entry = {n: bytes(data[v:e]) for n, _, v, e in _fields(data, value, end)}
            name, text = entry.get(1, b""), entry.get(2, b"")
            metadata[name.decode("utf-8", "replace")] = text.decode("utf-8", "surrogateescape")
        elif number in _INSIDE["model"]:
            todo.append((_INSIDE["model"][number], value, end))
    content.append(data[done:])
    while todo:
        message, begin, end = todo.pop()
        inside = _INSIDE[message]
        for number, _, value, stop in _fields(data, begin, end):
            if number in inside:
                todo.append((inside[number], value, stop))
            elif message == "tensor" and (
                number == _EXTERNAL_DATA or (number == _DATA_LOCATION and any(data[value:stop]))
            ):
                raise ValueError("weights that are in another file")
            elif message == "node" and number == _OPERATOR:
                operators.add(bytes(data[value:stop]))
    names = frozenset(name.decode("utf-8", "replace") for name in operators)
    return OnnxFile(metadata, tuple(content), names)


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
        expected="a model written by `fedapt export`, complete and in one file",
        next_step="check the path, copy the file again, or export the model again",
    )
