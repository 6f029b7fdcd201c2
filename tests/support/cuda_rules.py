"""CUDA's rules as questions to a runtime: the fake answers here, the real one in tests/gpu.

Each takes what stands in for the module `cuda.bindings.runtime`, and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _open(cuda: Any) -> Any:
    error, stream = cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking)
    assert error == cuda.cudaError_t.cudaSuccess
    return stream


def _close(cuda: Any, stream: Any) -> None:
    """The stream is usable, and gone afterwards."""
    success = cuda.cudaError_t.cudaSuccess
    status = cuda.cudaStreamCaptureStatus.cudaStreamCaptureStatusNone
    assert cuda.cudaStreamIsCapturing(stream) == (success, status)
    assert cuda.cudaStreamSynchronize(stream) == (success,)
    assert cuda.cudaStreamDestroy(stream) == (success,)


def capture_begins_and_ends(cuda: Any) -> None:
    success, mode = cuda.cudaError_t.cudaSuccess, cuda.cudaStreamCaptureMode
    stream = _open(cuda)
    assert cuda.cudaStreamBeginCapture(stream, mode.cudaStreamCaptureModeRelaxed) == (success,)
    active = cuda.cudaStreamCaptureStatus.cudaStreamCaptureStatusActive
    assert cuda.cudaStreamIsCapturing(stream) == (success, active)
    error, graph = cuda.cudaStreamEndCapture(stream)
    assert error == success
    error, executable = cuda.cudaGraphInstantiate(graph, 0)
    assert error == success
    assert cuda.cudaGraphDestroy(graph) == (success,)  # what was instantiated needs it no longer
    assert cuda.cudaGraphLaunch(executable, stream) == (success,)
    assert cuda.cudaStreamSynchronize(stream) == (success,)
    assert cuda.cudaGraphExecDestroy(executable) == (success,)
    _close(cuda, stream)


def no_end_without_a_beginning(cuda: Any) -> None:
    stream = _open(cuda)
    error, *_ = cuda.cudaStreamEndCapture(stream)
    assert error == cuda.cudaError_t.cudaErrorIllegalState
    _close(cuda, stream)


def no_second_beginning(cuda: Any) -> None:
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
    stream = _open(cuda)
    cuda.cudaStreamBeginCapture(stream, mode)
    assert cuda.cudaStreamBeginCapture(stream, mode) == (cuda.cudaError_t.cudaErrorIllegalState,)
    error, graph = cuda.cudaStreamEndCapture(stream)
    assert error == cuda.cudaError_t.cudaSuccess
    cuda.cudaGraphDestroy(graph)
    _close(cuda, stream)


def waiting_spoils_a_capture_until_it_is_ended(cuda: Any) -> None:
    errors, mode = cuda.cudaError_t, cuda.cudaStreamCaptureMode
    stream = _open(cuda)
    cuda.cudaStreamBeginCapture(stream, mode.cudaStreamCaptureModeRelaxed)
    assert cuda.cudaStreamSynchronize(stream) == (errors.cudaErrorStreamCaptureUnsupported,)
    status = cuda.cudaStreamCaptureStatus.cudaStreamCaptureStatusInvalidated
    assert cuda.cudaStreamIsCapturing(stream) == (errors.cudaSuccess, status)
    error, graph = cuda.cudaStreamEndCapture(stream)
    assert error == errors.cudaErrorStreamCaptureInvalidated
    assert graph is None or not int(graph)
    _close(cuda, stream)


def memory_cannot_be_had_in_a_strict_capture(cuda: Any) -> None:
    errors, mode = cuda.cudaError_t, cuda.cudaStreamCaptureMode
    stream = _open(cuda)
    cuda.cudaStreamBeginCapture(stream, mode.cudaStreamCaptureModeThreadLocal)
    error, _ = cuda.cudaMalloc(256)
    assert error == errors.cudaErrorStreamCaptureUnsupported
    error, _ = cuda.cudaStreamEndCapture(stream)
    assert error == errors.cudaErrorStreamCaptureInvalidated
    _close(cuda, stream)


def memory_can_be_had_and_freed_in_a_relaxed_capture(cuda: Any) -> None:
    success, mode = cuda.cudaError_t.cudaSuccess, cuda.cudaStreamCaptureMode
    error, before = cuda.cudaMalloc(256)
    assert error == success
    stream = _open(cuda)
    cuda.cudaStreamBeginCapture(stream, mode.cudaStreamCaptureModeRelaxed)
    error, meanwhile = cuda.cudaMalloc(256)
    assert error == success
    assert cuda.cudaFree(before) == (success,)
    error, graph = cuda.cudaStreamEndCapture(stream)
    assert error == success
    cuda.cudaGraphDestroy(graph)
    assert cuda.cudaFree(meanwhile) == (success,)
    _close(cuda, stream)


def memory_of_nobody_is_not_freed(cuda: Any) -> None:
    assert cuda.cudaFree(0x1234567) == (cuda.cudaError_t.cudaErrorInvalidValue,)
    assert cuda.cudaFreeHost(0x1234567) == (cuda.cudaError_t.cudaErrorInvalidValue,)
    cuda.cudaGetLastError()


def too_much_memory_is_refused(cuda: Any) -> None:
    assert cuda.cudaMalloc(1 << 50)[0] == cuda.cudaError_t.cudaErrorMemoryAllocation
    cuda.cudaGetLastError()


RULES: list[Callable[[Any], None]] = [
    capture_begins_and_ends,
    no_end_without_a_beginning,
    no_second_beginning,
    waiting_spoils_a_capture_until_it_is_ended,
    memory_cannot_be_had_in_a_strict_capture,
    memory_can_be_had_and_freed_in_a_relaxed_capture,
    memory_of_nobody_is_not_freed,
    too_much_memory_is_refused,
]
