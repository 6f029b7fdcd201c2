"""Batches through ONNX Runtime's CUDA streams, on a fake of CUDA. Twin: tests/gpu/test_cuda.py.

The session computes on the CPU, when the compute stream gets to it and not before: a wait that is
missing shows as rows of an older batch.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedapt_runtime.backends import cuda as cuda_module
from fedapt_runtime.backends import ort_cuda
from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.backends.ort import import_onnxruntime, open_session
from fedapt_runtime.backends.ort_cuda import ComputeStream, open_compute_stream
from fedapt_runtime.backends.streams import StreamPool
from fedapt_runtime.errors import RuntimeFailure
from tests.support.cuda_runtime import FakeCuda, Work

SHAPE = (64, 64, 3)


class FakeBinding:
    def __init__(self) -> None:
        self.slots: dict[str, tuple[Any, tuple[int, ...], int]] = {}
        self.values: dict[str, Any] = {}

    def bind_input(
        self, name: str, device: str, number: int, dtype: Any, shape: tuple[int, ...], address: int
    ) -> None:
        assert (device, number) == ("cuda", 0)
        self.slots[name] = dtype, shape, address

    bind_output = bind_input

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.values[name] = value


class FakeSession:
    """On "CUDA", with the rows of the CPU."""

    def __init__(self, model: Path, fake: FakeCuda, compute: ComputeStream) -> None:
        self._cpu = open_session(import_onnxruntime(), str(model), "cpu", model)
        self._fake, self._compute = fake, compute
        self.graphs: list[str] = []
        self.fails = False

    def run(self, names: list[str], feeds: dict[str, Any], options: Any = None) -> list[Any]:
        rows: list[Any] = self._cpu.run(names, feeds)
        return rows

    def io_binding(self) -> FakeBinding:
        return FakeBinding()

    def run_with_iobinding(self, binding: FakeBinding, options: Any) -> None:
        assert self._compute.lock.locked()
        self.graphs.append(options.get_run_config_entry("gpu_graph_id"))
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        if self.fails:
            raise RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED")
        self._fake.put(self._compute.stream, Work(lambda: self._compute_rows(binding), ()))

    def _compute_rows(self, binding: FakeBinding) -> None:
        images = view(*binding.slots["images"])
        feeds = {name: value.numpy() for name, value in binding.values.items()}
        rows = self._cpu.run(list(Outputs._fields), {"images": images, **feeds})
        for name, row in zip(Outputs._fields, rows, strict=True):
            view(*binding.slots[name])[:] = row


def view(dtype: Any, shape: tuple[int, ...], address: int) -> NDArray[Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = (ctypes.c_ubyte * size).from_address(address)
    return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)


class OnCpu:
    """ONNX Runtime whose values on "cuda" stay on the CPU."""

    RunOptions = staticmethod(lambda: import_onnxruntime().RunOptions())

    class OrtValue:
        @staticmethod
        def ortvalue_from_numpy(value: NDArray[Any], device: str, number: int) -> Any:
            assert (device, number) == ("cuda", 0)
            return import_onnxruntime().OrtValue.ortvalue_from_numpy(value)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    cuda = FakeCuda()
    monkeypatch.setattr(cuda_module, "import_cuda", lambda: cuda)
    open_compute_stream.cache_clear()
    yield cuda
    open_compute_stream.cache_clear()
    gc.collect()
    cuda.assert_empty()


@pytest.fixture
def session(fake: FakeCuda, tiny_model: Path) -> FakeSession:
    compute = open_compute_stream()
    assert open_compute_stream() is compute
    fake.kept_streams.add(compute.stream)
    return FakeSession(tiny_model, fake, compute)


def open_pool(session: FakeSession) -> StreamPool:
    return ort_cuda.open_streams(OnCpu, session, session._compute, {}, SHAPE, "model.onnx")


def noise(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def assert_rows(session: FakeSession, found: Outputs, images: NDArray[np.uint8]) -> None:
    expected = session.run(list(Outputs._fields), {"images": images})
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 5, 9])
def test_rows_are_those_of_the_session(
    batch: int, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_cuda, "SIZES", (1, 2, 4))  # nine images: three parts in two streams
    pool = open_pool(session)
    for seed in range(3):
        images = noise(batch, seed)
        assert_rows(session, pool.run(images), images)


def test_threads_share_the_streams(session: FakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_cuda, "SIZES", (1, 2, 4))
    pool = open_pool(session)
    batches = [noise(1 + i % 6, i) for i in range(18)]
    with ThreadPoolExecutor(4) as threads:
        for images, found in zip(batches, threads.map(pool.run, batches), strict=True):
            assert_rows(session, found, images)


def test_batches_are_filled_up_to_few_sizes_with_a_graph_each(
    session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_cuda, "STREAMS", 1)
    monkeypatch.setattr(ort_cuda, "SIZES", (1, 4, 12))
    pool = open_pool(session)
    for batch in (1, 2, 3, 4, 5, 8, 9, 12):
        assert_rows(session, pool.run(noise(batch, batch)), noise(batch, batch))
    one, four, full = (str(1 + size) for size in (1, 4, 12))
    assert session.graphs == [one, four, four, four, full, full, full, full]


def test_streams_share_no_graph(session: FakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_cuda, "SIZES", (1, 2, 4))
    open_pool(session).run(noise(8))
    assert len(set(session.graphs)) == 2


def test_a_run_that_fails_is_an_error_and_the_streams_go_on(session: FakeSession) -> None:
    pool = open_pool(session)
    session.fails = True
    with pytest.raises(
        RuntimeFailure,
        match=r"model\.onnx: found a graph that does not run on CUDA "
        r"\(CUBLAS_STATUS_NOT_INITIALIZED\)",
    ):
        pool.run(noise(2))
    session.fails = False
    for _ in range(3):
        assert_rows(session, pool.run(noise(2)), noise(2))


def test_a_provider_is_told_the_stream_and_whether_to_record(session: FakeSession) -> None:
    compute = session._compute
    assert compute.options(graphs=True) == {
        "user_compute_stream": str(compute.stream),
        "enable_cuda_graph": "1",
    }
    assert compute.options(graphs=False)["enable_cuda_graph"] == "0"
