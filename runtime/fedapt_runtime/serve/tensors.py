"""Tensors of the Open Inference Protocol: numbers in JSON, or bytes after the JSON.

Source: Open Inference Protocol, "REST API"; Triton's "Binary data extension".
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.errors import RequestError
from fedapt_runtime.serve.forms import malformed, parse_json

LENGTH_HEADER = "inference-header-content-length"


def split_body(body: bytes, json_length: str | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON of a request, and the bytes after it.

    Args:
        json_length: the value of `LENGTH_HEADER`; None where all of the body is JSON.

    Raises:
        RequestError: 400, the header is not a valid length, or the text is not a JSON object.
    """
    if json_length is None:
        return parse_json(body), memoryview(b"")
    if not json_length.isdecimal() or len(json_length) > 12 or int(json_length) > len(body):
        raise malformed(LENGTH_HEADER, f"{json_length!r} of a body of {len(body)} bytes")
    length = int(json_length)
    return parse_json(body[:length]), memoryview(body)[length:]


def read_images(
    request: Mapping[str, Any], binary: memoryview, size: tuple[int, int], max_images: int
) -> NDArray[np.uint8]:
    """The input `images`: uint8 [n, height, width, 3].

    Args:
        request: the JSON of the request.
        binary: the bytes after it.
        size: height and width.
        max_images: maximum n.

    Raises:
        RequestError: 400 for any other input, 413 for too many images.
    """
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise malformed("inputs", "not one tensor")
    tensor = inputs[0]
    shape = tensor.get("shape")
    if tensor.get("name") != "images" or tensor.get("datatype") != "UINT8":
        raise malformed("inputs", f"{tensor.get('name')!r} of {tensor.get('datatype')!r}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise malformed("shape", f"{str(shape)[:80]}")
    if shape[1:] != [*size, 3] or shape[0] < 1:
        raise malformed(
            "shape", f"{str(shape)[:80]}, where images are [n, {size[0]}, {size[1]}, 3]"
        )
    if shape[0] > max_images:
        raise malformed("images", f"{shape[0]} images, over the limit of {max_images}", 413)
    parameters = tensor.get("parameters", {})
    length = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if length is not None:
        if "data" in tensor or length != len(binary) or length != math.prod(shape):
            raise malformed("binary_data_size", f"{length!r} with {len(binary)} bytes of {shape}")
        return np.frombuffer(binary, np.uint8).reshape(shape)
    return _read_numbers(tensor.get("data"), shape)


def _read_numbers(data: Any, shape: list[int]) -> NDArray[np.uint8]:
    """Numbers in JSON, flat or nested."""
    depth = 1
    while isinstance(data, list) and data and isinstance(data[0], list) and depth < len(shape):
        if not all(isinstance(part, list) for part in data):
            raise malformed("data", "a mixture of arrays and numbers")
        data, depth = list(itertools.chain.from_iterable(data)), depth + 1
    # numpy would also convert other types, such as strings of any length
    if not isinstance(data, list) or set(map(type, data)) != {int}:
        raise malformed("data", "something other than an array of whole numbers")
    if len(data) != math.prod(shape):
        raise malformed("data", f"{len(data)} numbers of {shape}")
    try:
        return np.frombuffer(bytes(data), np.uint8).reshape(shape)
    except ValueError as error:
        raise malformed("data", "numbers outside 0 to 255") from error


def wanted_outputs(request: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, bool]:
    """The requested outputs: name -> whether the tensor is sent as bytes.

    Args:
        names: the graph's outputs; all of them are sent where the request names none.

    Raises:
        RequestError: 400, an unknown output or parameter.
    """
    parameters = request.get("parameters", {})
    if not isinstance(parameters, dict):
        raise malformed("parameters", "a value that is not an object")
    all_binary = parameters.get("binary_data_output", False) is True
    wanted = request.get("outputs")
    if wanted is None:
        return dict.fromkeys(names, all_binary)
    if not isinstance(wanted, list) or not all(isinstance(output, dict) for output in wanted):
        raise malformed("outputs", "a value that is not an array of objects")
    found: dict[str, bool] = {}
    for output in wanted:
        name, own = output.get("name"), output.get("parameters", {})
        if name not in names:
            raise malformed("outputs", f"{name!r}, not one of {', '.join(names)}")
        if not isinstance(own, dict) or not set(own) <= {"binary_data"}:
            raise malformed("outputs", f"parameters of {name} other than binary_data")
        found[name] = own.get("binary_data", all_binary) is True
    return found


def write_response(
    head: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]], wanted: Mapping[str, bool]
) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON; None if all of it is JSON.

    Args:
        head: the fields of the JSON other than `outputs`.
        tensors: name -> float32 array.
        wanted: see `wanted_outputs`.

    Raises:
        RequestError: 500, a tensor for JSON holds NaN or infinity.
    """
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, as_bytes in wanted.items():
        tensor = tensors[name]
        entry = {"name": name, "datatype": "FP32", "shape": list(tensor.shape)}
        if as_bytes:
            binary.append(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
            outputs.append(entry | {"parameters": {"binary_data_size": len(binary[-1])}})
        else:
            if not np.isfinite(tensor).all():
                raise RequestError(
                    500,
                    where=name,
                    found="NaN or infinity",
                    expected="finite numbers",
                    next_step="report this with the model",
                )
            outputs.append(entry | {"data": tensor.ravel().tolist()})
    text = json.dumps({**head, "outputs": outputs}, ensure_ascii=False).encode()
    return text + b"".join(binary), len(text) if binary else None
