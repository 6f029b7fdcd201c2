"""What is known of an engine without a GPU: its description, its targets, its sizes of batch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from fedapt_runtime.backends.engine_file import EngineFile, read_engine_file
from fedapt_runtime.backends.engine_plan import MODULES, import_library
from fedapt_runtime.errors import MissingDependency, ModelFileError, RuntimeFailure
from tests.support.manifests import make_manifest

PLAN = b"a plan"


def write_engine(folder: Path, **changes: object) -> Path:
    """A plan that no library has built, and a description that fits it."""
    path = folder / "model.engine"
    path.write_bytes(PLAN)
    fields: dict[str, Any] = {
        "flavour": "tensorrt",
        "library": {"name": "tensorrt", "version": "11.4.0.106"},
        "compute_capabilities": ["sm86", "sm89"],
        "batch": [2, 8, 16],
        "onnx_sha256": "",
        "engine_sha256": hashlib.sha256(PLAN).hexdigest(),
        "manifest": dataclasses.asdict(make_manifest(("a", "b"), ("x",))),
    }
    path.with_name("model.engine.json").write_text(json.dumps(fields | changes))
    return path


def test_a_description_is_read(tmp_path: Path) -> None:
    engine = read_engine_file(write_engine(tmp_path))
    assert engine == EngineFile(
        path=tmp_path / "model.engine",
        flavour="tensorrt",
        version="11.4.0.106",
        capabilities=("sm86", "sm89"),
        min_batch=2,
        opt_batch=8,
        max_batch=16,
        onnx_sha256="",
        manifest=make_manifest(("a", "b"), ("x",)),
    )
    assert engine.library == "TensorRT"


def test_an_engine_without_its_description(tmp_path: Path) -> None:
    path = write_engine(tmp_path)
    path.with_name("model.engine.json").unlink()
    with pytest.raises(
        ModelFileError,
        match=r"model\.engine\.json: found no readable description of the engine \(No such file",
    ):
        read_engine_file(path)
    path.unlink()
    with pytest.raises(ModelFileError, match=r"model\.engine: found no such file"):
        read_engine_file(path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"flavour": "cheddar"}, "flavour 'cheddar', batches of 2 to 16"),
        ({"batch": [0, 1, 2]}, "batches of 0 to 2"),
        ({"batch": [8, 4]}, "batches of 8 to 4"),
        ({"batch": []}, "IndexError"),
        ({"batch": "many"}, "invalid literal"),
        ({"batch": [1, float("inf"), 8]}, "cannot convert float infinity"),
        ({"library": {}}, "KeyError"),
        ({"library": "tensorrt"}, "string indices"),
        ({"engine_sha256": "0" * 64}, "hash 000000000000, which model.engine.json states"),
        ({"manifest": {}}, "found a damaged manifest"),
        ({"manifest": {"schema": 99}}, "found a manifest of schema 99"),
        ({"compute_capabilities": None}, "not iterable"),
    ],
)
def test_damaged_descriptions_are_refused(
    tmp_path: Path, changes: dict[str, object], text: str
) -> None:
    with pytest.raises(ModelFileError, match=text):
        read_engine_file(write_engine(tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "null", "[" * 100_000])
def test_what_is_no_description_is_refused(tmp_path: Path, text: str) -> None:
    path = write_engine(tmp_path)
    path.with_name("model.engine.json").write_text(text)
    with pytest.raises(ModelFileError, match="no readable description of the engine"):
        read_engine_file(path)


def test_another_plan_beside_the_description_is_refused(tmp_path: Path) -> None:
    path = write_engine(tmp_path)
    path.write_bytes(PLAN + b"!")
    with pytest.raises(ModelFileError, match="copy both files together"):
        read_engine_file(path)


def test_tensorrt_of_another_version_is_refused(tmp_path: Path) -> None:
    engine = read_engine_file(write_engine(tmp_path))
    engine.check_version("11.4.0.200")
    for other in ("11.4.1.106", "11.3.0.106", "10.4.0.106"):
        with pytest.raises(
            ModelFileError,
            match=rf"found an engine of TensorRT 11\.4\.0\.106; expected an engine of"
            rf" TensorRT {other}.*"
            r"pip install tensorrt==11\.4\.0\.106",
        ):
            engine.check_version(other)
    dataclasses.replace(engine, flavour="rtx").check_version("1.8.0")  # RTX tells by itself


def test_a_gpu_that_is_no_target_is_refused(tmp_path: Path) -> None:
    engine = read_engine_file(write_engine(tmp_path))
    engine.check_gpu("sm89", "NVIDIA L4")
    with pytest.raises(
        RuntimeFailure,
        match=r"found Tesla T4, a GPU with sm75; expected a GPU with sm86 or sm89, .* for sm75",
    ):
        engine.check_gpu("sm75", "Tesla T4")
    anywhere = dataclasses.replace(engine, capabilities=("default",))
    anywhere.check_gpu("sm75", "Tesla T4")


@pytest.mark.parametrize("flavour", ["rtx", "tensorrt"])
def test_without_the_library_the_line_that_brings_it_is_told(
    flavour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, MODULES[flavour], None)
    with pytest.raises(
        MissingDependency, match=rf"pip install 'fedapt-runtime\[{flavour}\]'"
    ) as caught:
        import_library(flavour)
    assert caught.value.exit_code == 9
