"""A message's records <-> bytes: a JSON header, then the raw arrays.

The bytes contain no code. Decoding allocates no more memory than the sender has sent. The code that
uses an array checks its declared shape (`federation.flower.tensors`).
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

_LENGTH_BYTES = 4
# parsed JSON needs many times its size in memory; shares of 10 000 clients are smaller
_MAX_HEADER_BYTES = 1 << 22
_KINDS: dict[str, type[MetricRecord] | type[ConfigRecord]] = {
    "metrics": MetricRecord,
    "config": ConfigRecord,
}


def encode(content: RecordDict) -> bytes:
    """Length of the header (4 bytes, little endian), the header (UTF-8 JSON), the arrays' bytes."""
    records: list[list[Any]] = []
    parts: list[bytes] = []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            arrays = []
            for key, array in record.items():
                arrays.append([key, array.dtype, list(array.shape), array.stype, len(array.data)])
                parts.append(array.data)
            records.append([name, "arrays", arrays])
        else:
            kind = "metrics" if isinstance(record, MetricRecord) else "config"
            records.append([name, kind, {k: _to_json(v) for k, v in record.items()}])
    header = json.dumps(records, ensure_ascii=False, separators=(",", ":")).encode()
    return b"".join((len(header).to_bytes(_LENGTH_BYTES, "little"), header, *parts))


def decode(data: bytes) -> RecordDict:
    """The records of these bytes, from a sender that may be hostile.

    Raises:
        ValueError: not what `encode` writes.
    """
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < end:
        raise ValueError("cut off")
    if end > _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {end:,} bytes")
    try:
        content, end = _read(json.loads(data[_LENGTH_BYTES:end]), data, end)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"no records ({type(error).__name__})") from error
    if end != len(data):
        raise ValueError("more bytes than its arrays have")
    return content


def count_bytes(content: RecordDict) -> int:
    """Number of bytes that `encode` returns for the records."""
    return len(encode(content))


def _read(records: Any, data: bytes, end: int) -> tuple[RecordDict, int]:
    content = RecordDict()
    for name, kind, values in records:
        if not isinstance(name, str):
            raise TypeError("a name that is no text")
        if kind == "arrays":
            arrays = {}
            for key, dtype, shape, stype, length in values:
                if not all(type(n) is int and n >= 0 for n in (*shape, length)):
                    raise ValueError("an impossible shape or length")
                if length > len(data) - end or not isinstance(key, str):
                    raise ValueError("cut off")
                part = data[end : end + length]
                arrays[key] = Array(str(dtype), tuple(shape), str(stype), part)
                end += length
            content[name] = ArrayRecord(arrays)
        else:
            content[name] = _KINDS[kind]({k: _from_json(v) for k, v in values.items()})
    return content, end


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return [_to_json(item) for item in value] if isinstance(value, list) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if "float" in value:
            return float(value["float"])
        return base64.b64decode(value["bytes"], validate=True)
    return [_from_json(item) for item in value] if isinstance(value, list) else value
