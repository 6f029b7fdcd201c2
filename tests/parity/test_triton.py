"""The Triton repository: its configuration is read by Triton's own schema."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fedapt.cli.app import main
from fedapt_export import deliver
from fedapt_export.engine import EngineSettings
from fedapt_export.triton import write_repository
from fedapt_runtime import Manifest, Preprocessing
from tests.support.manifests import make_manifest

model_config_pb2 = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc] (the extra `dev`)"
)
text_format = pytest.importorskip("google.protobuf.text_format")

SETTINGS = EngineSettings(min_batch=1, opt_batch=4, max_batch=16)
CLASSES = ('a "quoted" mug', "grün 🖍", "back\\slash", "plain", "{brace}")
DOMAINS = ("photo", "clip art", "sketch")


def manifest_of(classes: tuple[str, ...] = CLASSES, domains: tuple[str, ...] = DOMAINS) -> Manifest:
    preprocessing = Preprocessing((32, 48), (0, 0, 0), (1, 1, 1), resize_mode="squash")
    return dataclasses.replace(make_manifest(classes, domains), preprocessing=preprocessing)


def read_config(folder: Path) -> Any:
    text = (folder / "config.pbtxt").read_text("utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def write(tmp_path: Path, name: str = "model.onnx", data: bytes = b"\x00graph\xff") -> Path:
    model = tmp_path / name
    model.write_bytes(data)
    return model


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_the_configuration_says_what_goes_in_and_out(tmp_path: Path) -> None:
    model = write(tmp_path)
    target = write_repository(model, tmp_path / "repository", manifest_of(), SETTINGS)
    assert target == tmp_path / "repository" / "model"
    config = read_config(target)
    assert (config.name, config.backend, config.max_batch_size) == ("model", "onnxruntime", 16)
    kinds = model_config_pb2.DataType
    (images,) = config.input
    assert images.name == "images"
    assert kinds.Name(images.data_type) == "TYPE_UINT8"
    assert list(images.dims) == [32, 48, 3]
    assert [(o.name, kinds.Name(o.data_type), list(o.dims)) for o in config.output] == [
        ("logits", "TYPE_FP32", [5]),
        ("domain_weights", "TYPE_FP32", [3]),
    ]
    assert [o.label_filename for o in config.output] == ["classes.txt", "domains.txt"]
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert 0 < config.dynamic_batching.max_queue_delay_microseconds <= 10_000


def test_warm_up_is_one_batch_of_zeros(tmp_path: Path) -> None:
    target = write_repository(write(tmp_path), tmp_path / "r", manifest_of(), SETTINGS)
    (warm_up,) = read_config(target).model_warmup
    assert warm_up.batch_size == 4
    assert list(warm_up.inputs) == ["images"]
    zeros = warm_up.inputs["images"]
    assert zeros.zero_data
    assert model_config_pb2.DataType.Name(zeros.data_type) == "TYPE_UINT8"
    assert list(zeros.dims) == [32, 48, 3]


def test_labels_stand_in_order_one_a_line(tmp_path: Path) -> None:
    target = write_repository(write(tmp_path), tmp_path / "r", manifest_of(), SETTINGS)
    for name, labels in (("classes.txt", CLASSES), ("domains.txt", DOMAINS)):
        assert (target / name).read_bytes().decode("utf-8") == "\n".join(labels) + "\n"


def test_a_line_break_in_a_name_moves_no_other_label(tmp_path: Path) -> None:
    classes = ("mug", "two\nlines", "bike")
    manifest = manifest_of(classes=classes)
    target = write_repository(write(tmp_path), tmp_path / "r", manifest, SETTINGS)
    lines = (target / "classes.txt").read_text("utf-8").splitlines()
    assert len(lines) == 3
    assert (lines[0], lines[2]) == ("mug", "bike")


def test_the_model_is_there_byte_by_byte_and_nothing_else(tmp_path: Path) -> None:
    model = write(tmp_path)
    target = write_repository(model, tmp_path / "r", manifest_of(), SETTINGS)
    assert (target / "1" / "model.onnx").read_bytes() == model.read_bytes()
    assert files(target) == ["1/model.onnx", "classes.txt", "config.pbtxt", "domains.txt"]
    assert files(tmp_path / "r") == [f"model/{name}" for name in files(target)]


@pytest.mark.parametrize("stem", ['my "best" model', "back\\slash", "grün", "a.b", "{x}"])
def test_the_configuration_has_the_name_of_its_folder(stem: str, tmp_path: Path) -> None:
    target = write_repository(
        write(tmp_path, f"{stem}.onnx"), tmp_path / "r", manifest_of(), SETTINGS
    )
    assert read_config(target).name == target.name == stem


def test_an_engine_becomes_a_plan(tmp_path: Path) -> None:
    engine = write(tmp_path, "model.engine", b"plan")
    target = write_repository(engine, tmp_path / "r", manifest_of(), SETTINGS)
    config = read_config(target)
    assert config.backend == "tensorrt"
    assert (target / "1" / "model.plan").read_bytes() == b"plan"
    assert files(target) == ["1/model.plan", "classes.txt", "config.pbtxt", "domains.txt"]


def test_an_older_repository_is_renewed_and_its_neighbours_stay(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    other = write_repository(write(tmp_path, "other.onnx"), folder, manifest_of(), SETTINGS)
    before = {name: (other / name).read_bytes() for name in files(other)}
    write_repository(write(tmp_path), folder, manifest_of(), SETTINGS)
    model = write(tmp_path, data=b"newer")
    settings = EngineSettings(min_batch=1, opt_batch=8, max_batch=64)
    target = write_repository(model, folder, manifest_of(classes=("a", "b")), settings)
    config = read_config(target)
    assert (config.max_batch_size, list(config.output[0].dims)) == (64, [2])
    assert (target / "classes.txt").read_text() == "a\nb\n"
    assert (target / "1" / "model.onnx").read_bytes() == b"newer"
    assert files(target) == ["1/model.onnx", "classes.txt", "config.pbtxt", "domains.txt"]
    assert {name: (other / name).read_bytes() for name in files(other)} == before


# through the command


def export(run: Path, out: Path, *more: str) -> int:
    named = ["export", str(run / "checkpoint.safetensors"), "--out", str(out)]
    return main([*named, "--min-agreement", "0", *more])


def test_the_command_serves_the_model_that_it_wrote(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "tiny.onnx", tmp_path / "repository"
    sizes = ["--opt-batch", "2", "--max-batch", "6"]
    assert export(tiny_run, out, "--triton", str(folder), *sizes) == 0
    assert "tiny, which serves tiny.onnx in Triton" in capsys.readouterr().err
    target = folder / "tiny"
    config = read_config(target)
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 6)
    assert list(config.input[0].dims) == [64, 64, 3]
    assert [list(o.dims) for o in config.output] == [[3], [2]]
    assert (target / "classes.txt").read_text() == "blue disc\nred square\nstripes\n"
    assert (target / "domains.txt").read_text() == "photo\nsketch\n"
    assert (target / "1" / "model.onnx").read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("flavour", "backend", "served"),
    [("rtx", "onnxruntime", "model.onnx"), ("tensorrt", "tensorrt", "model.plan")],
)
def test_an_engine_is_served_where_triton_has_a_backend(
    flavour: str,
    backend: str,
    served: str,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(model: Path, out: Path, settings: EngineSettings, images: Any) -> dict[str, Any]:
        assert settings.flavour == flavour
        out.write_bytes(b"plan of " + flavour.encode())
        library = {"name": flavour, "version": "1"}
        return {"library": library, "compute_capabilities": ["default"], "verified": None}

    def resolve(settings: EngineSettings, precision: str = "fp32") -> EngineSettings:
        return settings

    monkeypatch.setattr(deliver, "build_engine", build)
    monkeypatch.setattr(EngineSettings, "resolve", resolve)
    monkeypatch.setattr(EngineSettings, "find_obstacle", lambda *_: "")
    out, folder = tmp_path / "tiny.onnx", tmp_path / "r"
    assert export(tiny_run, out, "--trt", "--trt-flavour", flavour, "--triton", str(folder)) == 0
    target = folder / "tiny"
    assert read_config(target).backend == backend
    assert [p.name for p in (target / "1").iterdir()] == [served]
    expected = out.read_bytes() if flavour == "rtx" else b"plan of tensorrt"
    assert (target / "1" / served).read_bytes() == expected


def test_a_head_alone_cannot_be_served(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "head.safetensors"
    assert export(tiny_run, out, "--head-only", "--triton", str(tmp_path / "r")) == 2
    assert "--head-only and --triton: found both" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_4(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "model.onnx"
    assert export(tiny_run, out, "--triton", str(tmp_path / "file"), "--json") == 4
    captured = capsys.readouterr()
    assert "expected a file that can be written" in captured.err
    assert "Traceback" not in captured.err
    assert (tmp_path / "file").read_text() == "in the way"
    assert json.dumps(captured.out) == '""'
