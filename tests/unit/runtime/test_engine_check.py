"""`fedapt-runtime check` on the fakes of TensorRT and CUDA, against a real ONNX file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from fedapt_runtime.backends import cuda as cuda_module
from fedapt_runtime.backends import tensorrt as tensorrt_module
from fedapt_runtime.cli import main
from fedapt_runtime.manifest import METADATA_KEY
from tests.support.cuda_runtime import FakeCuda
from tests.support.fake_engine import write_engine
from tests.support.manifests import make_manifest
from tests.support.tensorrt_library import OUTPUTS, FakeMachine, FakePlan, Library

PLAN = FakePlan(scale=1 / 64)


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    fake = FakeCuda()
    library = Library(FakeMachine(fake))
    monkeypatch.setattr(cuda_module, "import_cuda", lambda: fake)
    monkeypatch.setattr(tensorrt_module, "import_library", lambda _: library)
    monkeypatch.setattr("fedapt_runtime.engine_check.import_library", lambda _: library)
    return library


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What `FakePlan` computes, as ONNX: the first bytes of an image, in 64ths."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["flat"]),
        helper.make_node("Split", ["flat", "widths"], [*OUTPUTS, "rest"], axis=1),
    ]
    widths = np.array([*PLAN.columns, 12 - sum(PLAN.columns)])
    graph = helper.make_graph(
        nodes,
        "fake",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 2, 2, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
            for name, width in zip(OUTPUTS, PLAN.columns, strict=True)
        ],
        [
            onnx.numpy_helper.from_array(np.float32(PLAN.scale), "scale"),
            onnx.numpy_helper.from_array(widths, "widths"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    manifest = make_manifest(("a", "b"), ("x",))
    helper.set_model_props(proto, {METADATA_KEY: manifest.to_json()})
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    return path


def write(folder: Path, model: Path, plan: FakePlan = PLAN) -> Path:
    """An engine with a description, of this model."""
    return write_engine(folder, plan, onnx_sha256=hashlib.sha256(model.read_bytes()).hexdigest())


def test_a_right_engine_passes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = write(tmp_path, model)
    before = (tmp_path / "model.engine.json").read_bytes()
    assert main(["check", str(engine), "--against", str(model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{engine} matches {model}"
    assert lines[1] == "batches of 1, 3, 8, on noise"
    assert lines[2].startswith("TensorRT against ONNX Runtime 0.0e+00  largest difference")
    assert (tmp_path / "model.engine.json").read_bytes() == before


def test_a_wrong_engine_is_7_and_gets_no_description(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = write(tmp_path, model, FakePlan(scale=1 / 32))
    assert main(["check", str(engine), "--against", str(model)]) == 7
    assert "an engine that differs from ONNX Runtime by" in capsys.readouterr().err
    (tmp_path / "model.engine.json").unlink()
    assert main(["check", str(engine), "--against", str(model)]) == 7
    assert not (tmp_path / "model.engine.json").exists()


def test_an_engine_of_trtexec_gets_its_description_when_it_has_passed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(FakePlan(scale=1 / 64, min_batch=2, opt_batch=4, max_batch=8).to_bytes())
    assert main(["check", str(engine), "--against", str(model), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["batch_sizes"] == [2, 3, 4, 8]
    fields: dict[str, Any] = json.loads((tmp_path / "model.engine.json").read_text())
    assert fields["library"] == {"name": "tensorrt", "version": "11.4.0.106"}
    assert fields["compute_capabilities"] == ["sm90"]
    assert fields["batch"] == [2, 4, 8]
    assert fields["verified"] == report
    assert fields["onnx_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    # the runtime takes it from now on
    image = tmp_path / "image.png"
    Image.fromarray(np.full((2, 2, 3), 7, np.uint8)).save(image)
    assert main(["classify", str(engine), str(image)]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "a"


def test_an_engine_of_another_model_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = write_engine(tmp_path, PLAN, onnx_sha256="0" * 64)
    assert main(["check", str(engine), "--against", str(model)]) == 8
    assert "built from a model with hash 000000000000; expected" in capsys.readouterr().err


def test_images_of_ones_own(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = write(tmp_path, model)
    folder = tmp_path / "images"
    folder.mkdir()
    command = ["check", str(engine), "--against", str(model), "--images", str(folder)]
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "0.png")
    assert main(command) == 8
    assert "found 1 images; expected two or more" in capsys.readouterr().err
    for i in (1, 2):
        Image.fromarray(np.full((4, 4, 3), 50 * i, np.uint8)).save(folder / f"{i}.png")
    assert main(command) == 0
    assert "on 3 images" in capsys.readouterr().out
    (folder / "3.png").write_bytes(b"no image")
    assert main(command) == 8
    assert "3.png: found not an image of a known format" in capsys.readouterr().err


def test_what_is_not_there(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = str(tmp_path / "absent.engine")
    assert main(["check", absent, "--against", str(model)]) == 8
    assert "absent.engine: found no such file" in capsys.readouterr().err
