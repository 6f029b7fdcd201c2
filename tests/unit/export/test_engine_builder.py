"""The child process that builds engines, on a fake of TensorRT."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fedapt_export import engine_builder
from fedapt_export.engine_builder import BuildError, build
from tests.support import tensorrt_builder
from tests.support.tensorrt_library import FakePlan, Library


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(tensorrt_builder.Builder, "fails", ())
    library: Any = Library(machine=None)  # type: ignore[arg-type]
    names = ("Builder", "BuilderFlag", "Logger", "NetworkDefinitionCreationFlag", "OnnxParser")
    for name in names:
        setattr(library, name, getattr(tensorrt_builder, name))
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    return library


@pytest.fixture
def request_(tmp_path: Path) -> dict[str, Any]:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"graph")
    return {
        "flavour": "tensorrt",
        "model": str(model),
        "out": str(tmp_path / "model.engine"),
        "capabilities": [],
        "min_batch": 1,
        "opt_batch": 4,
        "max_batch": 16,
        "timing_cache": "",
        "refit": False,
    }


def test_an_engine_is_built_with_its_profile(
    library: Any, request_: dict[str, Any], tmp_path: Path
) -> None:
    assert build(request_) == {"library": "tensorrt", "version": "11.4.0.106"}
    plan = (tmp_path / "model.engine").read_bytes()
    assert plan == FakePlan(min_batch=1, max_batch=16).to_bytes()


@pytest.mark.parametrize(
    ("fails", "text"),
    [
        ("Builder", "the library created no Builder; check the GPU"),
        ("create_network", "the library gave no network"),
        ("create_builder_config", "the library gave no configuration"),
        ("create_optimization_profile", "the library gave no optimisation profile"),
        ("build_serialized_network", "the library gave no engine"),
    ],
)
def test_what_the_library_does_not_give_is_told(
    fails: str,
    text: str,
    library: Any,
    request_: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tensorrt_builder.Builder, "fails", (fails,))
    with pytest.raises(BuildError, match=text):
        build(request_)
    assert not (tmp_path / "model.engine").exists()


def test_a_refused_graph_and_refused_sizes(library: Any, request_: dict[str, Any]) -> None:
    with pytest.raises(BuildError, match=r"batches of \[1, 32, 16\] are refused for images"):
        build(request_ | {"opt_batch": 32})
    Path(request_["model"]).write_bytes(b"strange")
    with pytest.raises(BuildError, match="no importer registered for op: Strange"):
        build(request_)


def test_an_old_tensorrt(library: Any, request_: dict[str, Any]) -> None:
    library.__version__ = "8.6.1"
    with pytest.raises(BuildError, match=r"TensorRT 8\.6\.1; 10 or newer is needed"):
        build(request_)


def test_a_timing_cache_is_begun_and_kept(
    library: Any, request_: dict[str, Any], tmp_path: Path
) -> None:
    cache = tmp_path / "timings"
    for _ in range(2):
        build(request_ | {"timing_cache": str(cache)})
        assert cache.read_bytes() == b"timings"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"damaged", r"timings is a damaged timing cache; remove it"),
        (b"another GPU", r"timings is a damaged timing cache, or one of another GPU or version"),
    ],
)
def test_a_timing_cache_of_no_use_is_refused_and_kept(
    data: bytes, text: str, library: Any, request_: dict[str, Any], tmp_path: Path
) -> None:
    cache = tmp_path / "timings"
    cache.write_bytes(data)
    with pytest.raises(BuildError, match=text):
        build(request_ | {"timing_cache": str(cache)})
    assert cache.read_bytes() == data
    assert not (tmp_path / "model.engine").exists()


def test_any_error_is_one_line_for_the_parent(
    library: Any,
    request_: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request_)))
    assert engine_builder.main() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["library"] == "tensorrt"
    del request_["refit"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request_)))
    assert engine_builder.main() == 1
    assert capsys.readouterr().err == "KeyError: 'refit'\n"
