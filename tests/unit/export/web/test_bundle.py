"""The folder of a page: what is in it, and what is refused. tests/e2e/test_browser.py opens it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from fedapt_export.model_file import read_model
from fedapt_export.web.bundle import write_bundle
from fedapt_export.web.runtime_files import WASM_FILES, WEBGPU_FILES
from fedapt_runtime.errors import ModelFileError

RUNTIME = dict.fromkeys(WASM_FILES, b"wasm")


def read_all(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_it_holds_the_model_and_its_manifest(tiny_model: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tiny_model, tmp_path / "site", RUNTIME)
    files = read_all(bundle.folder)
    data = tiny_model.read_bytes()
    assert files["model.onnx"] == data
    assert {name for name in files if name.startswith("ort/")} == {f"ort/{n}" for n in WASM_FILES}
    described = json.loads(files["bundle.json"])
    assert described["model"] == {
        "file": "model.onnx",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    manifest = read_model(tiny_model)[1]
    assert described["manifest"] == json.loads(manifest.to_json())
    assert described["webgpu"] is False
    assert bundle.bytes["model"] == len(data)
    assert bundle.bytes["runtime"] == 4 * len(WASM_FILES)
    assert b"MIT License" in files["THIRD_PARTY.txt"]


def test_the_service_worker_knows_every_file_of_the_page(tiny_model: Path, tmp_path: Path) -> None:
    files = read_all(write_bundle(tiny_model, tmp_path, RUNTIME).folder)
    worker = files["sw.js"].decode()
    assert "@" not in worker
    line = next(line for line in worker.splitlines() if line.startswith("const FILES"))
    named = set(line.split('"')[1].split())
    apart = {"sw.js", "model.onnx", "THIRD_PARTY.txt", *(f"ort/{name}" for name in RUNTIME)}
    assert named == files.keys() - apart


def test_the_same_model_gives_the_same_bytes_and_another_a_new_version(
    tiny_model: Path, tmp_path: Path
) -> None:
    first = read_all(write_bundle(tiny_model, tmp_path / "one", RUNTIME).folder)
    again = read_all(write_bundle(tiny_model, tmp_path / "two", RUNTIME).folder)
    assert first == again
    other = RUNTIME | dict.fromkeys(WEBGPU_FILES, b"gpu")
    changed = read_all(write_bundle(tiny_model, tmp_path / "one", other).folder)
    assert changed["sw.js"] != first["sw.js"]
    assert json.loads(changed["bundle.json"])["webgpu"] is True


def test_a_model_may_stand_in_the_folder_already(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_model.read_bytes())
    write_bundle(model, tmp_path, RUNTIME)
    assert model.read_bytes() == tiny_model.read_bytes()
    assert (tmp_path / "index.html").is_file()


def test_a_damaged_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    damaged = bytearray(tiny_model.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    model = tmp_path / "m.onnx"
    model.write_bytes(damaged)
    with pytest.raises(ModelFileError):
        write_bundle(model, tmp_path / "site", RUNTIME)
    assert not (tmp_path / "site").exists()
