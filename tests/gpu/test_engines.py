"""Engines on a real GPU: their rows are those of ONNX Runtime, however they are batched."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedapt_export.engine import CAPABILITIES, EngineSettings, build_engine
from fedapt_runtime.backends.base import Backend, Outputs
from fedapt_runtime.backends.choose import load_backend
from fedapt_runtime.backends.ort import PROVIDERS, import_onnxruntime
from fedapt_runtime.errors import RuntimeFailure
from fedapt_runtime.options import LoadOptions
from tests.support.fusing import export_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None or find_spec("cuda") is None,
    reason="needs TensorRT-RTX and cuda-bindings (the extra `rtx`)",
)


def capability() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Backend:
    if capability() not in CAPABILITIES:
        pytest.skip(f"{capability()} is no target of TensorRT-RTX")
    out = tmp_path_factory.mktemp("engine") / "model.engine"
    build_engine(tiny_model, out, EngineSettings("rtx", (capability(),), 2, 4, 8))
    return load_backend(out)


def noise(count: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def assert_same(found: Outputs, expected: Outputs) -> None:
    for name, a, b in zip(Outputs._fields, found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-2, err_msg=name)


@needs_rtx
@pytest.mark.parametrize("batch", [1, 2, 5, 8, 9, 32])
def test_an_engine_computes_what_onnx_runtime_computes(
    engine: Backend, tiny_model: Path, batch: int
) -> None:
    reference = load_backend(tiny_model, LoadOptions(device="cpu"))
    for seed in range(3):  # the first runs warm up, later ones may be CUDA graphs
        images = noise(batch, seed)
        assert_same(engine.run(images), reference.run(images))


@needs_rtx
def test_equal_and_permuted_rows(engine: Backend) -> None:
    images = noise(8)
    expected = engine.run(images)
    order = np.random.default_rng(1).permutation(8)
    assert_same(engine.run(images[order]), Outputs(*(output[order] for output in expected)))
    repeated = engine.run(np.repeat(images[:1], 8, axis=0))
    assert_same(repeated, Outputs(*(np.repeat(output[:1], 8, axis=0) for output in expected)))


@needs_rtx
def test_threads_share_an_engine(engine: Backend) -> None:
    batches = [noise(1 + i % 12, i) for i in range(24)]
    expected = [engine.run(batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for found, one in zip(pool.map(engine.run, batches), expected, strict=True):
            assert_same(found, one)


@needs_rtx
def test_an_engine_of_another_gpu_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    other = "sm75" if capability() != "sm75" else "sm120"
    build_engine(tiny_model, tmp_path / "other.engine", EngineSettings("rtx", (other,)))
    with pytest.raises(RuntimeFailure, match=f"with {capability()}; expected a GPU with {other}"):
        load_backend(tmp_path / "other.engine")


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_tensorrt_inside_onnx_runtime(tiny_model: Path, batch: int) -> None:
    if PROVIDERS["tensorrt-ep"] not in import_onnxruntime().get_available_providers():
        pytest.skip("this ONNX Runtime has no TensorRT provider")
    try:
        backend = load_backend(tiny_model, LoadOptions("tensorrt-ep"))
    except RuntimeFailure as error:  # it is listed also where TensorRT's own library is not there
        pytest.skip(f"the TensorRT provider does not start: {error.found}")
    images = noise(batch)
    assert_same(
        backend.run(images), load_backend(tiny_model, LoadOptions(device="cpu")).run(images)
    )


@pytest.mark.skipif(find_spec("tensorrt") is None, reason="needs TensorRT (the extra `gpu`)")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_builds_on_this_gpu_and_what_it_built_is_right(
    tiny_run: Path, tmp_path: Path, precision: str
) -> None:
    model, out = tmp_path / "model.onnx", tmp_path / "model.engine"
    export_run(tiny_run, model, precision=precision, symmetric=True, force=True)
    settings = EngineSettings(
        "tensorrt", (), 1, 4, 8, timing_cache=tmp_path / "timings", refit=True
    )
    for _ in range(2):  # the second build reads the timings of the first
        description = build_engine(model, out, settings)
        assert description["compute_capabilities"] == [capability()]
        assert description["verified"]["batch_sizes"] == (1, 3, 4, 8)
        assert (tmp_path / "timings").stat().st_size > 0
    rows = load_backend(out).run(noise(5))
    assert_same(rows, load_backend(model, LoadOptions(device="cpu")).run(noise(5)))


@needs_rtx
def test_an_rtx_engine_is_run_before_it_is_written(tiny_model: Path, tmp_path: Path) -> None:
    if capability() not in CAPABILITIES:
        pytest.skip(f"{capability()} is no target of TensorRT-RTX")
    settings = EngineSettings("rtx", (capability(),), 1, 4, 8)
    description = build_engine(tiny_model, tmp_path / "model.engine", settings)
    assert description["verified"]["probability_difference"] < 1e-3
