"""Model files that are damaged, foreign or contradict themselves: a ModelFileError and its text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from fedapt_runtime import Classifier
from fedapt_runtime.backends.ort import import_onnxruntime
from fedapt_runtime.errors import ModelFileError
from fedapt_runtime.manifest import METADATA_KEY


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def assert_refused(target: Path, text: str) -> None:
    with pytest.raises(ModelFileError, match=rf"model\.onnx: found {text}") as caught:
        Classifier.load(target, device="cpu")
    assert caught.value.exit_code == 8
    assert caught.value.next_step != ""


def edit(source: Path, target: Path, change: Callable[[ModelProto], None]) -> None:
    model = onnx.load(str(source))
    change(model)
    onnx.save(model, str(target))


def edit_manifest(source: Path, target: Path, **changes: Any) -> None:
    def change(model: ModelProto) -> None:
        (entry,) = (p for p in model.metadata_props if p.key == METADATA_KEY)
        entry.value = json.dumps(json.loads(entry.value) | changes)

    edit(source, target, change)


def test_an_unchanged_copy_is_loaded(tiny_model: Path, target: Path) -> None:
    edit_manifest(tiny_model, target)
    classifier = Classifier.load(target, device="cpu")
    (row,) = classifier([np.zeros((64, 64, 3), np.uint8)])
    assert (row.error, row.label in classifier.manifest.classes) == (None, True)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated(tiny_model: Path, target: Path, share: float) -> None:
    data = tiny_model.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    assert_refused(target, r"a file that is not an ONNX model \(.+\); expected a model written")


@pytest.mark.parametrize("length", [1, 100, 100_000])
def test_random_bytes(target: Path, length: int) -> None:
    target.write_bytes(np.random.default_rng(length).bytes(length))
    assert_refused(target, r"a file that is not an ONNX model \(.+\); expected a model written")


def test_empty(target: Path) -> None:
    target.write_bytes(b"")
    assert_refused(target, "an empty file; expected a model written by `fedapt export`")


def test_missing_and_folder(target: Path) -> None:
    assert_refused(target, "no such file; expected a model written by `fedapt export`")
    target.mkdir()
    assert_refused(target, "not a file; expected a model written by `fedapt export`")


def test_a_graph_that_is_no_fedapt_model(target: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [result])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(target))
    assert_refused(target, "an ONNX file without a fedapt manifest; expected a model written by")


def test_the_manifest_is_gone(tiny_model: Path, target: Path) -> None:
    def change(model: ModelProto) -> None:
        del model.metadata_props[:]

    edit(tiny_model, target, change)
    assert_refused(target, "an ONNX file without a fedapt manifest; expected a model written by")


def test_the_manifest_is_no_json(tiny_model: Path, target: Path) -> None:
    def change(model: ModelProto) -> None:
        model.metadata_props[0].value = model.metadata_props[0].value[:-9]

    edit(tiny_model, target, change)
    assert_refused(target, r"a damaged manifest \(JSONDecodeError: .+\); expected the manifest")


def test_a_manifest_of_schema_99(tiny_model: Path, target: Path) -> None:
    edit_manifest(tiny_model, target, schema=99)
    assert_refused(
        target, "a manifest of schema 99; expected schema 1. To do: install a fedapt-runtime"
    )


@pytest.mark.parametrize("size", [[32, 32], [64, 65]])
def test_a_size_that_is_not_the_graphs(tiny_model: Path, target: Path, size: list[int]) -> None:
    preprocessing = {
        "size": size,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "resize_mode": "squash",
    }
    edit_manifest(tiny_model, target, preprocessing=preprocessing)
    assert_refused(
        target,
        r"inputs \{'images': \('uint8', \[64, 64, 3\]\)\} and outputs .+; "
        rf"expected images uint8 \[batch, {size[0]}, {size[1]}, 3\] and, float32, logits,"
        " domain_weights, features",
    )


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({"classes": ["a", "b"]}, "2 and 2"),
        ({"classes": ["a", "b", "c", "d"]}, "4 and 2"),
        ({"domains": ["a"]}, "3 and 1"),
    ],
)
def test_names_that_are_not_as_many_as_the_graphs(
    tiny_model: Path, target: Path, changes: dict[str, list[str]], counts: str
) -> None:
    edit_manifest(tiny_model, target, **changes)
    assert_refused(
        target, f"a graph of 3 classes and 2 domains; expected {counts}, as its manifest names them"
    )


def rename_output(model: ModelProto) -> None:
    node = helper.make_node("Identity", ["logits"], ["scores"])
    model.graph.node.append(node)
    model.graph.output[0].name = "scores"


def cast_output(model: ModelProto) -> None:
    for node in model.graph.node:
        node.output[:] = ["narrow" if name == "logits" else name for name in node.output]
    cast = helper.make_node("Cast", ["narrow"], ["logits"], to=TensorProto.DOUBLE)
    model.graph.node.append(cast)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def add_input(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            rename_output,
            r"inputs .+ and outputs \{'scores': .+'domain_weights'.*\}; expected images",
        ),
        (
            cast_output,
            r"inputs .+ and outputs .+'logits': \('tensor\(double\)', .+; expected images",
        ),
        (add_input, r"inputs .+'more': \('float32', \[\]\).+; expected images uint8"),
    ],
)
def test_another_signature(
    tiny_model: Path, target: Path, change: Callable[[ModelProto], None], text: str
) -> None:
    edit(tiny_model, target, change)
    assert_refused(target, text)


@pytest.mark.parametrize("place", [0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
@pytest.mark.parametrize("change", [1, 0x80, 0xFF])
def test_a_flipped_byte_is_refused(
    tiny_model: Path, target: Path, place: float, change: int
) -> None:
    data = bytearray(tiny_model.read_bytes())
    data[int(place * len(data))] ^= change
    target.write_bytes(data)
    assert_refused(target, ".+; expected ")


def test_a_flipped_byte_of_a_weight_is_told_by_hashes(tiny_model: Path, target: Path) -> None:
    data = bytearray(tiny_model.read_bytes())
    largest = max(onnx.load(tiny_model).graph.initializer, key=lambda t: len(t.raw_data)).raw_data
    at = data.index(largest) + len(largest) // 2
    data[at] ^= 1
    target.write_bytes(data)
    assert_refused(target, r"content of hash \w{12}, not \w{12}; expected a model")


def test_weights_in_another_file_are_refused_before_any_library_reads_them(
    tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(import_onnxruntime(), "InferenceSession", fail)
    model = onnx.load(tiny_model)
    onnx.save(model, target, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert_refused(target, "weights that are in another file; expected a model")
    model = onnx.load(tiny_model)
    value = onnx.helper.make_tensor("x", onnx.TensorProto.FLOAT, [1], [1.0])
    value.data_location = onnx.TensorProto.EXTERNAL
    value.external_data.add(key="location", value="/etc/passwd")
    inner = onnx.helper.make_graph([], "inner", [], [], [value])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    model.graph.node.append(node)
    onnx.save(model, target)
    assert_refused(target, "weights that are in another file; expected a model")


def test_a_failure_without_a_message_is_told(
    tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError  # what ONNX Runtime passes on has no text of its own

    monkeypatch.setattr(import_onnxruntime(), "InferenceSession", fail)
    target.write_bytes(tiny_model.read_bytes())
    assert_refused(target, r"a file that ONNX Runtime cannot load \(MemoryError\); expected")
