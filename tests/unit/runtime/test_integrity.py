"""Hashes of descriptions and contents, and the look into an ONNX file that they are taken from."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fedapt_runtime.integrity import find_damage, list_content, seal
from fedapt_runtime.onnx_file import read_onnx


def test_the_hash_by_hand() -> None:
    text = seal({"b": "é", "a": 1}, [b"con", memoryview(b"tent")])
    expected = hashlib.sha256('{"a": 1, "b": "é"}content'.encode()).hexdigest()
    assert json.loads(text) == {"a": 1, "b": "é", "content_sha256": expected}
    assert find_damage(text, [b"content"]) == ""
    assert find_damage(json.dumps(json.loads(text)), [b"content"]) == ""  # written otherwise


def test_damage_is_told() -> None:
    text = seal({"a": 1}, [b"content"])
    known = json.loads(text)["content_sha256"]
    found = hashlib.sha256(b'{"a": 1}contend').hexdigest()
    expected = f"content of hash {found[:12]}, not {known[:12]}"
    assert find_damage(text, [b"contend"]) == expected
    assert "not " in find_damage(text.replace('"a": 1', '"a": 2'), [b"content"])
    assert find_damage('{"a": 1}', [b"anything"]) == ""  # an older file


def test_tensors_differ_by_name_dtype_shape_and_bytes() -> None:
    zeros = np.zeros((2, 3), np.float32)
    kinds = [
        {"a": zeros},
        {"b": zeros},
        {"a": zeros.T},
        {"a": zeros.astype(np.int32)},
        {"a": zeros, "b": zeros[:0]},
        {"a": zeros + 1},
    ]
    parts = [b"".join(list_content(kind)) for kind in kinds]
    assert len(set(parts)) == len(kinds)
    first, second = {"a": zeros, "b": zeros.T}, {"b": zeros.T, "a": zeros}
    assert b"".join(list_content(first)) == b"".join(list_content(second))


def make_model() -> onnx.ModelProto:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    return helper.make_model(graph)


def external(name: str = "e") -> TensorProto:
    tensor = TensorProto(name=name, dims=[1], data_type=TensorProto.FLOAT)
    tensor.external_data.add(key="location", value="elsewhere")
    return tensor


def test_metadata_and_content() -> None:
    model = make_model()
    bare = model.SerializeToString()
    helper.set_model_props(model, {"a": "é" * 100, "b": ""})
    model.functions.add(name="f", domain="d")  # a field that comes after the metadata
    found = read_onnx(memoryview(model.SerializeToString()))
    assert found.metadata == {"a": "é" * 100, "b": ""}
    del model.metadata_props[:]
    assert b"".join(found.content) == model.SerializeToString() != bare


def put_in_graph(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(external())


def put_location(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def put_in_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=external()))


def put_in_list(model: onnx.ModelProto) -> None:
    attribute = onnx.AttributeProto(name="values", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.append(external())
    model.graph.node[0].attribute.append(attribute)


def put_in_subgraph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [], [external()])
    outer = helper.make_graph(
        [helper.make_node("If", ["c"], ["z"], then_branch=inner)], "o", [], []
    )
    model.graph.node.append(helper.make_node("Loop", [], ["l"], body=outer))


def put_in_sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(external())


def put_in_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=external())
    model.functions.add(name="f", domain="d").node.append(node)


def put_in_training(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.initializer.append(external())


@pytest.mark.parametrize(
    "put",
    [
        put_in_graph,
        put_location,
        put_in_attribute,
        put_in_list,
        put_in_subgraph,
        put_in_sparse,
        put_in_function,
        put_in_training,
    ],
    ids=lambda put: put.__name__,
)
def test_external_data_is_found_wherever_it_is(put) -> None:
    model = make_model()
    read_onnx(memoryview(model.SerializeToString()))
    put(model)
    with pytest.raises(ValueError, match="weights that are in another file"):
        read_onnx(memoryview(model.SerializeToString()))


def test_a_graph_nested_thousands_of_times_is_no_recursion() -> None:
    data = external().SerializeToString()
    # attribute.t; node.attribute, graph.node and attribute.g again and again; model.graph
    for field in (5, *(5, 1, 6) * 2_000, 5, 1, 7):
        size, length = len(data), b""
        while size > 0x7F:
            length += bytes([size & 0x7F | 0x80])
            size >>= 7
        data = bytes([field << 3 | 2]) + length + bytes([size]) + data
    with pytest.raises(ValueError, match="weights that are in another file"):
        read_onnx(memoryview(data))


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a\x05ab",  # a length beyond the end
        b"\x3a",
        b"\x08",
        b"\x08" + b"\xff" * 11,
        b"\x3b\x3c",  # a group, which protobuf readers skip in ways of their own
        b"\x00\x00",  # field 0
        b"\x0e\x00",
        b"\x09\x00",
    ],
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(ValueError, match="a file that is not an ONNX model"):
        read_onnx(memoryview(data))
