"""A model above 2 GB: two files that move and load as one, and what is refused."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fedapt.core.errors import FileError, ReportedError
from fedapt.core.report import Reporter
from fedapt.onnx.tower import read_tower
from fedapt.onnx.weights import hold_weights, read_values
from fedapt_export import model_file
from fedapt_export.build_script import write_build_script
from fedapt_export.describe import describe
from fedapt_export.engine import EngineSettings
from fedapt_export.model_file import (
    count_file_bytes,
    list_parts,
    read_manifest,
    read_model,
    write_model,
)
from fedapt_export.swap import swap_head
from fedapt_export.triton import write_repository
from fedapt_export.verify import verify
from fedapt_export.web.bundle import write_bundle
from fedapt_runtime import Classifier, Manifest
from fedapt_runtime.backends.choose import list_files
from fedapt_runtime.errors import ModelFileError
from fedapt_runtime.manifest import METADATA_KEY
from fedapt_runtime.onnx_file import open_onnx
from tests.support.fusing import export_run

IMAGES = np.random.default_rng(3).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are written as if one file could hold nothing."""
    monkeypatch.setattr(model_file, "MAX_FILE_BYTES", 0)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path, two_files: None) -> Path:
    """The tiny model in two files."""
    path = tmp_path / "first" / "model.onnx"
    path.parent.mkdir()
    write_model(*read_model(tiny_model), path)
    return path


def weights_of(model: Path) -> Path:
    (path,) = model.parent.glob("*.data")
    return path


def rows(model: Path, backend: str, **options: Any) -> list[np.ndarray]:
    classifier = Classifier.load(model, backend=backend, device="cpu", **options)
    return list(classifier.backend.run(IMAGES))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_both_forms_compute_the_same(tiny_model: Path, model: Path, backend: str) -> None:
    expected = rows(tiny_model, backend)
    for found, known in zip(rows(model, backend), expected, strict=True):
        np.testing.assert_array_equal(found, known)


def test_an_export_writes_them_and_is_verified(
    tiny_run: Path, tiny_model: Path, tmp_path: Path, two_files: None
) -> None:
    out = tmp_path / "model.onnx"
    exported = export_run(tiny_run, out)
    data = weights_of(out)
    assert re.fullmatch(r"model\.onnx\.[0-9a-f]{16}\.data", data.name)
    found = describe(out)
    assert found["weights"] == exported.manifest.weights
    assert found["weights"]["file"] == data.name
    assert found["weights"]["bytes"] == data.stat().st_size
    assert found["weight_bytes"] == describe(tiny_model)["weight_bytes"]
    assert out.stat().st_size < tiny_model.stat().st_size / 3
    checkpoint = tiny_run / "checkpoint.safetensors"
    parity = verify(out, checkpoint, data=None, images=8, min_agreement=0, reporter=Reporter())
    assert parity.feature_difference is not None
    assert parity.feature_difference < 1e-5
    again = tmp_path / "again" / "model.onnx"
    export_run(tiny_run, again)
    assert again.read_bytes() == out.read_bytes()
    assert weights_of(again).read_bytes() == data.read_bytes()


def test_every_weight_starts_on_a_page_of_memory(model: Path) -> None:
    places = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in onnx.load(model, load_external_data=False).graph.initializer
        if tensor.external_data
    ]
    assert places
    assert {place["location"] for place in places} == {weights_of(model).name}
    assert all(int(place["offset"]) % 4096 == 0 for place in places)


def test_they_move_together(model: Path, tmp_path: Path) -> None:
    expected = rows(model, "onnxruntime")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = elsewhere / "another name.onnx"
    shutil.copy(model, moved)
    with pytest.raises(
        ModelFileError, match=rf"no file {weights_of(model).name} beside it; .* To do: copy model"
    ):
        rows(moved, "onnxruntime")
    shutil.copy(weights_of(model), elsewhere)
    for found, known in zip(rows(moved, "onnxruntime"), expected, strict=True):
        np.testing.assert_array_equal(found, known)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"\.data with [\d,]+ bytes, not [\d,]+; expected a model"),
        (flip, r"\.data of hash \w{12}, not \w{12}; expected a model"),
    ],
)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_damaged_weights_are_refused(
    model: Path, damage: Callable[[Path], None], message: str, backend: str
) -> None:
    damage(weights_of(model))
    for read in (lambda: rows(model, backend), lambda: read_model(model)):
        with pytest.raises(ModelFileError, match=message):
            read()


def change_references(model: Path, key: str, value: str) -> None:
    """Rewrite the references alone; the manifest stays as it is."""
    changed = onnx.load(model, load_external_data=False)
    for tensor in changed.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == key:
                entry.value = value
    model.write_bytes(changed.SerializeToString())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("location", "/etc/passwd", "weights that are in another file"),
        ("location", "../first/other.data", "weights that are in another file"),
        ("offset", str(10**9), r"a weight beyond the end of model\.onnx"),
        ("offset", "-4096", "a weight whose place in its file is not a number"),
        ("length", "many", "a weight whose place in its file is not a number"),
    ],
)
def test_only_the_file_of_the_manifest_is_read(
    model: Path, key: str, value: str, message: str
) -> None:
    change_references(model, key, value)
    with pytest.raises(ModelFileError, match=message):
        open_onnx(model)


@pytest.mark.parametrize("name", ["../model.data", "/tmp/model.data", "a\\b", "..", "", 5, None])
def test_a_manifest_names_a_file_of_its_own_folder(model: Path, name: object) -> None:
    changed = onnx.load(model, load_external_data=False)
    (entry,) = changed.metadata_props
    fields = json.loads(entry.value)
    fields["weights"]["file"] = name
    entry.value = json.dumps(fields)
    model.write_bytes(changed.SerializeToString())
    if isinstance(name, str):
        change_references(model, "location", name)
    with pytest.raises(ModelFileError, match="weights that are in another file"):
        open_onnx(model)
    with pytest.raises(ModelFileError, match=r"damaged manifest .*weights is"):
        read_manifest(changed, model)


def test_a_head_is_swapped_with_the_weights_beside_it(
    tiny_run: Path, model: Path, tmp_path: Path
) -> None:
    head = tmp_path / "head.safetensors"
    export_run(tiny_run, head, head_only=True)
    expected = rows(model, "onnxruntime", head=head)
    swapped = tmp_path / "swapped.onnx"
    manifest = swap_head(model, head, swapped)
    assert manifest.weights is not None
    assert manifest.weights["file"] == weights_of(swapped).name
    assert weights_of(swapped).read_bytes() == weights_of(model).read_bytes()
    for found, known in zip(rows(swapped, "onnxruntime"), expected, strict=True):
        np.testing.assert_array_equal(found, known)


def test_the_next_model_of_the_name_removes_them(
    model: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = model.with_name("model.onnx.data")  # not one of ours
    kept.write_bytes(b"of another program")
    old = model.with_name(f"model.onnx.{'0' * 16}.data")
    old.write_bytes(b"of an earlier model")
    write_model(*read_model(model), model)
    assert not old.exists()
    assert len(list(model.parent.glob("*.data"))) == 2
    monkeypatch.undo()
    write_model(*read_model(model), model)
    assert list(model.parent.glob("*.data")) == [kept]
    assert model.read_bytes() == tiny_model.read_bytes()


def test_the_files_of_a_model(model: Path, tiny_model: Path) -> None:
    assert list_files(model) == [model, weights_of(model)]
    assert list_files(tiny_model) == [tiny_model]
    engine = model.with_suffix(".engine")
    assert list_files(engine) == [engine, model.with_name("model.engine.json")]


@pytest.mark.usefixtures("two_files")
def test_a_full_disk_leaves_the_earlier_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in model.parent.iterdir()}
    changed, manifest = read_model(model)
    weight = next(tensor for tensor in changed.graph.initializer if tensor.external_data)
    values = read_values(weight) + 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    written: list[Path] = []

    def fill(self: Manifest, content: object) -> str:
        written.extend(model.parent.rglob("weights"))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "seal", fill)
        with pytest.raises(FileError, match="found No space left on device"):
            write_model(changed, manifest, model)
    assert len(written) == 1  # the new weights were complete when the disk was full
    assert {path.name: path.read_bytes() for path in model.parent.iterdir()} == before
    write_model(changed, manifest, model)
    assert weights_of(model).name not in before


def test_triton_gets_both_files(model: Path, tmp_path: Path) -> None:
    manifest = read_model(model)[1]
    folder = write_repository(model, tmp_path / "models", manifest, EngineSettings())
    served = folder / "1" / "model.onnx"
    for found, known in zip(rows(served, "onnxruntime"), rows(model, "onnxruntime"), strict=True):
        np.testing.assert_array_equal(found, known)


def test_the_script_for_an_engine_checks_both_files(model: Path) -> None:
    manifest = read_model(model)[1]
    script = write_build_script(model, manifest, EngineSettings()).read_text()
    assert manifest.weights is not None
    assert f"\n{manifest.weights['sha256']}  {weights_of(model).name}\nEND\n" in script


def test_a_web_page_cannot_hold_it(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ReportedError, match="a model above 2 GB, in two files; expected a model"):
        write_bundle(model, tmp_path / "site", {})
    assert not (tmp_path / "site").exists()


def test_one_file_has_the_bytes_of_protobuf(tiny_backbone: Any, tiny_model: Path) -> None:
    tower = read_tower(tiny_backbone)
    assert any(tensor.external_data for tensor in tower.graph.initializer)
    whole = hold_weights(tower)
    assert not any(tensor.external_data for tensor in whole.graph.initializer)
    parts = b"".join(list_parts(tower))
    assert parts == b"".join(list_parts(whole)) == whole.SerializeToString()
    assert count_file_bytes(tower) == len(parts)
    written = onnx.load(tiny_model)
    assert METADATA_KEY in {entry.key for entry in written.metadata_props}
    assert tiny_model.read_bytes() == written.SerializeToString()
