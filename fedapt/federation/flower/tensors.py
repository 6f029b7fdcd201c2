"""Learned tensors <-> Flower's ArrayRecord, and the size of a message on the wire."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message
from numpy.lib import format as npy

from fedapt.federation.flower.network import content
from fedapt.training.methods.base import Learned

_MAX_HEADER_BYTES = 1024


def to_arrays(learned: Learned) -> ArrayRecord:
    """Tensors as a record, by their names."""
    return ArrayRecord(
        {
            name: Array(tensor.detach().cpu().contiguous().numpy())
            for name, tensor in learned.items()
        }
    )


def from_arrays(record: Mapping[str, Array], device: torch.device) -> Learned:
    """A record as tensors. Call `check_arrays` first if the sender is not trusted."""
    return {name: torch.from_numpy(array.numpy()).to(device) for name, array in record.items()}


def check_arrays(record: Mapping[str, Array], expected: Learned) -> str:
    """The first difference from the expected names, shapes and dtype; empty if there is none.

    The check compares each array's declared shape, the header in its bytes and their number, before
    it allocates memory.
    """
    if record.keys() != expected.keys():
        return f"tensors {', '.join(sorted(record)) or 'none'}, not {', '.join(sorted(expected))}"
    for name, tensor in expected.items():
        if reason := check_array(name, record[name], tuple(tensor.shape), "float32"):
            return reason
    return ""


def check_array(name: str, array: Array, shape: tuple[int, ...], dtype: str) -> str:
    """The difference from the expected shape and dtype; empty if there is none."""
    kind = np.dtype(dtype).newbyteorder("<")
    if len(array.data) > math.prod(shape) * kind.itemsize + _MAX_HEADER_BYTES:
        return f"{name} of {len(array.data):,} bytes"
    found = _read_header(array.data)
    if found is None:
        return f"{name} that is no array"
    if (tuple(array.shape), array.dtype) != (shape, dtype) or found != (shape, kind.str):
        return f"{name} of {array.dtype} {list(array.shape)}, not {dtype} {list(shape)}"
    return ""


def _read_header(data: bytes) -> tuple[tuple[int, ...], str] | None:
    """Shape and dtype in the header of .npy bytes; None if the number of bytes does not fit."""
    stream = io.BytesIO(data)
    try:
        if npy.read_magic(stream) != (1, 0):
            return None
        shape, is_fortran, dtype = npy.read_array_header_1_0(stream, _MAX_HEADER_BYTES)
    except (ValueError, EOFError):
        return None
    n_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    fits = not is_fortran and len(data) - stream.tell() == n_bytes
    return (tuple(shape), dtype.str) if fits else None


def count_bytes(message: Message) -> int:
    """Bytes of a message as a deployment sends it, without the envelope of HTTP and TLS."""
    return content.count_bytes(message.content) if message.has_content() else 0
