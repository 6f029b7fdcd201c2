"""The calls of CUDA, on a fake that keeps CUDA's rules. Twin: tests/gpu/test_cuda_runtime.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from fedapt_runtime.backends import cuda as cuda_module
from fedapt_runtime.backends.cuda import Gpu
from fedapt_runtime.errors import RuntimeFailure
from tests.support.cuda_rules import RULES
from tests.support.cuda_runtime import BrokenRule, FakeCuda
from tests.support.gpu_checks import CHECKS


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda()
    monkeypatch.setattr(cuda_module, "import_cuda", lambda: fake)
    yield fake
    fake.assert_empty()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_fake_keeps_cudas_rules(rule: Callable[[Any], None], cuda: FakeCuda) -> None:
    rule(cuda)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_gpu(check: Callable[[Gpu], None], cuda: FakeCuda) -> None:
    check(Gpu())


def test_what_cuda_leaves_undefined_fails_in_the_fake(cuda: FakeCuda) -> None:
    with pytest.raises(BrokenRule, match="a stream that waits for others"):
        cuda.cudaStreamCreateWithFlags(0)
    _, stream = cuda.cudaStreamCreateWithFlags(1)
    _, device = cuda.cudaMalloc(8)
    _, host = cuda.cudaMallocHost(8)
    kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
    with pytest.raises(BrokenRule, match="8 bytes of host memory, found less, or device memory"):
        cuda.cudaMemcpyAsync(device, device, 8, kind, stream)
    with pytest.raises(BrokenRule, match="9 bytes of device memory, found less"):
        cuda.cudaMemcpyAsync(device, host, 9, kind, stream)
    cuda.cudaStreamBeginCapture(stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed)
    cuda.cudaMemcpyAsync(device, host, 8, kind, stream)
    _, graph = cuda.cudaStreamEndCapture(stream)
    _, executable = cuda.cudaGraphInstantiate(graph, 0)
    cuda.cudaGraphDestroy(graph)
    cuda.cudaFree(device)
    assert cuda.broken.pop() == "memory was freed before a graph that uses it"
    cuda.cudaGraphLaunch(executable, stream)
    with pytest.raises(BrokenRule, match="work on memory that was freed"):
        cuda.cudaStreamSynchronize(stream)
    cuda.cudaGraphExecDestroy(executable)
    cuda.cudaFreeHost(host)
    cuda.cudaStreamDestroy(stream)
    cuda.broken.clear()


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_module, "import_cuda", lambda: FakeCuda(devices=0))
    with pytest.raises(
        RuntimeFailure, match=r"CUDA: found cudaErrorNoDevice \(cudaGetDeviceCount, error 100\)"
    ):
        Gpu()


def test_no_driver_under_older_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old(FakeCuda):
        def cudaGetDeviceCount(self) -> tuple[Any, ...]:  # noqa: N802
            raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(cuda_module, "import_cuda", Old)
    with pytest.raises(
        RuntimeFailure, match=r"found Failed to dlopen libcuda\.so\.1 \(cudaGetDeviceCount\)"
    ):
        Gpu()


@pytest.mark.parametrize("kind", ["allocate", "allocate_pinned"])
def test_too_little_memory_is_told_as_that(kind: str, cuda: FakeCuda) -> None:
    gpu = Gpu()
    with (
        ExitStack() as taken,
        pytest.raises(RuntimeFailure, match=r"too little GPU memory.*for smaller batches"),
    ):
        getattr(gpu, kind)(taken, 1 << 40)


def test_another_gpu_of_the_thread_is_current_again_afterwards(cuda: FakeCuda) -> None:
    gpu = Gpu()
    cuda.cudaSetDevice(3)
    with gpu.current():
        assert cuda.cudaGetDevice()[1] == 0
    assert cuda.cudaGetDevice()[1] == 3
