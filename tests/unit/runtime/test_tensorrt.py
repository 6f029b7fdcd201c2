"""Engines on the fakes of TensorRT and CUDA, which fail where a rule is broken.

Twin: tests/gpu/test_engine_stream.py.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedapt_runtime.backends import cuda as cuda_module
from fedapt_runtime.backends import engine_stream
from fedapt_runtime.backends.tensorrt import TensorRtBackend
from fedapt_runtime.errors import ModelFileError, RuntimeFailure
from tests.support import tensorrt_rtx
from tests.support.cuda_runtime import BrokenRule, FakeCuda
from tests.support.fake_engine import CHECKS, PLAN, assert_rows, draw, load, write_engine
from tests.support.tensorrt_library import FakeMachine, FakePlan, Library


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda()
    monkeypatch.setattr(cuda_module, "import_cuda", lambda: fake)
    yield fake
    gc.collect()
    fake.assert_empty()


@pytest.fixture
def library(cuda: FakeCuda) -> Iterator[Library]:
    library = Library(FakeMachine(cuda))
    yield library
    gc.collect()
    assert [engine.broken for engine in library.engines] == [[] for _ in library.engines]
    assert all(context() is None for engine in library.engines for context in engine.contexts)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_an_engine(
    check: Callable[[TensorRtBackend, Library], None],
    library: Library,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check(load(write_engine(tmp_path), library, monkeypatch), library)


def test_a_size_that_comes_again_becomes_a_graph_on_each_stream(
    cuda: FakeCuda, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = load(write_engine(tmp_path), library, monkeypatch)
    assert cuda.calls == []
    for _ in range(4):  # two on each stream: a shared context, then one of its own
        backend.run(draw(5))
    assert cuda.calls == []
    backend.run(draw(5))
    assert cuda.calls == ["begin", "end", "launch"]
    backend.run(draw(5))
    backend.run(draw(5))
    assert cuda.calls == [*["begin", "end", "launch"] * 2, "launch"]
    # of each stream a context for all sizes, and one for this size
    assert len(library.engines[0].contexts) == 4


def test_no_more_graphs_than_allowed(
    cuda: FakeCuda, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_stream, "MAX_GRAPHS", 2)
    backend = load(write_engine(tmp_path), library, monkeypatch)
    for seed in range(8):
        for batch in (2, 3, 4, 5):
            images = draw(batch, seed)
            assert_rows(backend.run(images), images)
    assert cuda.calls.count("begin") == 4  # two of each stream
    assert len(library.engines[0].contexts) == 6


@pytest.mark.parametrize(
    ("fails", "text"),
    [
        ("context", r"found no execution context, possibly for lack of memory \(out of memory\)"),
        ("address", r"found an engine that refuses an address for images \(no tensor images\)"),
        ("unset", r"that does not run a batch of 1 \(no address of \['domain_weights', 'feat"),
        ("shape", r"that refuses a batch of 1 \(shape \[1, 2, 2, 3\] is outside of the profile\)"),
        ("enqueue", r"found an engine that does not run a batch of 1 \(enqueue failed\)"),
    ],
)
def test_what_the_library_refuses_is_our_error_with_its_words(
    fails: str, text: str, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_engine(tmp_path, FakePlan(fails=(fails,)))
    with pytest.raises(RuntimeFailure, match=text) as caught:
        load(path, library, monkeypatch)
    assert caught.value.exit_code == 8
    assert "free the GPU's memory, or build the engine again" in caught.value.next_step


def test_a_library_that_does_not_start_and_a_plan_that_is_none(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_engine(tmp_path)
    library.is_broken = True
    text = r"TensorRT 11\.4\.0\.106 that fails to start \(CUDA initialization failure\)"
    with pytest.raises(RuntimeFailure, match=text):
        load(path, library, monkeypatch)
    library.is_broken = False
    monkeypatch.setattr(FakePlan, "to_bytes", lambda _: b"no plan")
    with pytest.raises(
        ModelFileError, match=r"an engine that TensorRT \S+ refuses \(magicTag does not match\)"
    ):
        load(write_engine(tmp_path), library, monkeypatch)


def test_an_engine_of_rtx_keeps_its_graphs_itself(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tensorrt_rtx.Library(FakeMachine(cuda))
    path = write_engine(tmp_path, **tensorrt_rtx.rtx_description())
    backend = load(path, library, monkeypatch)
    for check in CHECKS[:3]:
        check(backend, library)
    assert cuda.calls == []  # none of our own
    assert len(library.engines[0].contexts) == 2  # one of each stream


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (FakePlan(fails=("config",)), "found no runtime configuration"),
        (FakePlan(fails=("context",)), "found no execution context, possibly for lack of memory"),
    ],
)
def test_what_rtx_does_not_give(
    plan: FakePlan, text: str, cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tensorrt_rtx.Library(FakeMachine(cuda))
    path = write_engine(tmp_path, plan, **tensorrt_rtx.rtx_description())
    with pytest.raises(RuntimeFailure, match=text):
        load(path, library, monkeypatch)
    monkeypatch.setattr(FakePlan, "to_bytes", lambda _: b"no plan")
    path = write_engine(tmp_path, plan, **tensorrt_rtx.rtx_description())
    with pytest.raises(ModelFileError, match=r"refuses \(MALFORMED_ENGINE\)"):
        load(path, library, monkeypatch)


def test_too_little_memory_leaves_nothing_behind(
    cuda: FakeCuda, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_engine(tmp_path, FakePlan(scratch=1 << 40))
    with pytest.raises(RuntimeFailure, match="too little GPU memory"):
        load(path, library, monkeypatch)


def test_the_first_gpu_of_cuda_is_used_whatever_the_thread_uses(
    cuda: FakeCuda, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    compute = library.machine.compute

    def note(*arguments: object) -> bool:
        used.append(cuda.cudaGetDevice()[1])
        return compute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(library.machine, "compute", note)
    cuda.cudaSetDevice(1)
    backend = load(write_engine(tmp_path), library, monkeypatch)
    backend.run(draw(3))
    assert set(used) == {0}
    assert cuda.cudaGetDevice()[1] == 1


# the fakes fail where a rule of NVIDIA's is broken


def test_the_rules_of_execution_contexts_are_kept_by_the_fake(
    cuda: FakeCuda, library: Library
) -> None:
    engine = library.Runtime(library.ILogger()).deserialize_cuda_engine(PLAN.to_bytes())
    strategy = library.ExecutionContextAllocationStrategy.USER_MANAGED
    context = engine.create_execution_context(strategy)
    _, stream = cuda.cudaStreamCreateWithFlags(1)
    _, memory = cuda.cudaMalloc(4096)
    with pytest.raises(BrokenRule, match="999 bytes of scratch memory for 1000"):
        context.set_device_memory(memory, 999)
    context.set_device_memory(memory, 1000)
    assert not context.execute_async_v3(stream)  # no shape, no address
    for i, name in enumerate(("images", "logits", "domain_weights", "features")):
        assert context.set_tensor_address(name, memory + 1024 * i)
    assert not context.set_input_shape("images", (9, 2, 2, 3))
    assert context.set_input_shape("images", (2, 2, 2, 3))
    begin = (stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed)
    cuda.cudaStreamBeginCapture(*begin)
    with pytest.raises(BrokenRule, match="a shape is set while a stream is captured"):
        context.set_input_shape("images", (2, 2, 2, 3))
    with pytest.raises(BrokenRule, match="a capture before the first run of a shape"):
        context.execute_async_v3(stream)
    cuda.cudaGraphDestroy(cuda.cudaStreamEndCapture(stream)[1])
    assert context.execute_async_v3(stream)
    cuda.cudaStreamBeginCapture(*begin)
    assert context.execute_async_v3(stream)
    with pytest.raises(BrokenRule, match="two graphs hold one context"):
        context.execute_async_v3(stream)
    _, graph = cuda.cudaStreamEndCapture(stream)
    with pytest.raises(BrokenRule, match="a shape of a context changes that a graph holds"):
        context.set_input_shape("images", (3, 2, 2, 3))
    cuda.cudaFree(memory)
    assert cuda.broken.pop() == "memory was freed before an execution context that uses it"
    del context
    gc.collect()
    assert engine.broken.pop() == "a context was destroyed before what needs it"
    cuda.cudaGraphDestroy(graph)
    cuda.cudaStreamDestroy(stream)
