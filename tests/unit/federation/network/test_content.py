"""A message's bytes: what goes in comes out, and nothing else does."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedapt.federation.flower.network.content import count_bytes, decode, encode


def write(header: object, rest: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(4, "little") + text + rest


def test_records_come_back_as_they_were() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = RecordDict(
        {
            "learned": ArrayRecord({"w": Array(values), "empty": Array(np.zeros((0, 4), "int64"))}),
            "reply": MetricRecord({"images": 3, "loss": 0.5, "shares": [1, 2]}),
            "task": ConfigRecord({"a": "é", "b": b"\x00\xff", "c": True, "d": [b"x"], "e": [1.0]}),
        }
    )
    data = encode(content)
    found = decode(data)
    assert list(found) == ["learned", "reply", "task"]
    assert np.array_equal(found.array_records["learned"]["w"].numpy(), values)
    assert found.array_records["learned"]["empty"].numpy().shape == (0, 4)
    assert dict(found.metric_records["reply"]) == {"images": 3, "loss": 0.5, "shares": [1, 2]}
    assert type(found.metric_records["reply"]["images"]) is int
    assert dict(found.config_records["task"]) == dict(content.config_records["task"])
    assert encode(found) == data
    assert count_bytes(content) == len(data)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_has_not(value: float) -> None:
    data = encode(RecordDict({"m": MetricRecord({"loss": value})}))
    json.loads(data[4:], parse_constant=lambda name: pytest.fail(name))
    found = decode(data).metric_records["m"]["loss"]
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut off|Expecting value"),
        (b"\xff\xff\xff\xff{}", "cut off"),
        (b"\x01\x00\x00\x00\xff", "codec can't decode"),
        (write({"a": 1}), "not enough values|too many values|no records"),
        (write([["a", "code", {}]]), "no records"),
        (write([["a", "metrics", {"x": "text"}]]), "no records"),
        (write([[1, "metrics", {}]]), "no records"),
        (write([["a", "arrays", [["w", "float32", [2], "numpy.ndarray", 9]]]], b"8 bytes "), "cut"),
        (write([["a", "arrays", [["w", "float32", [-1], "numpy.ndarray", 0]]]]), "impossible"),
        (write([["a", "arrays", [["w", "float32", [2], "numpy.ndarray", True]]]], b"x"), "imposs"),
        (write([["a", "metrics", {}]], b"more"), "more bytes"),
        (write([["a", "config", {"x": {"bytes": "?"}}]]), "."),
        (write([["a", "config", {"x": {"float": "1e"}}]]), "could not convert"),
        (b"\x00\x10\x00\x00" + b"[" * 4096, "."),
        (b"\x00\x00\x40\x00" + bytes(1 << 22), "a header of 4,194,308 bytes"),
    ],
)
def test_bytes_of_a_stranger(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode(data)


def test_no_memory_is_taken_for_what_was_not_sent() -> None:
    header = [["a", "arrays", [["w", "float32", [1 << 40], "numpy.ndarray", 4]]]]
    (array,) = decode(write(header, b"1234")).array_records["a"].values()
    assert len(array.data) == 4
