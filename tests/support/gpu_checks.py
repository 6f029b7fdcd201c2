"""What `Gpu` must do, on the fake CUDA as on a real GPU; each check leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest
from numpy.typing import NDArray

from fedapt_runtime.backends.cuda import Gpu
from fedapt_runtime.errors import RuntimeFailure

_SIZE = 1000


def _noise(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, _SIZE, dtype=np.uint8)


def bytes_go_over_and_come_back(gpu: Gpu) -> None:
    with ExitStack() as taken:
        stream, device = gpu.open_stream(taken), gpu.allocate(taken, _SIZE)
        there, back = gpu.allocate_pinned(taken, _SIZE), gpu.allocate_pinned(taken, _SIZE)
        assert there.dtype == np.uint8
        assert there.shape == (_SIZE,)
        there[:] = _noise(0)
        gpu.copy_in(device, there, _SIZE, stream)
        gpu.copy_out(back, device, _SIZE, stream)
        gpu.wait(stream)
        np.testing.assert_array_equal(back, _noise(0))


def a_graph_does_again_what_was_recorded(gpu: Gpu) -> None:
    with ExitStack() as taken:
        stream, device = gpu.open_stream(taken), gpu.allocate(taken, _SIZE)
        there, back = gpu.allocate_pinned(taken, _SIZE), gpu.allocate_pinned(taken, _SIZE)

        def copy() -> None:
            gpu.copy_in(device, there, _SIZE, stream)
            gpu.copy_out(back, device, _SIZE, stream)

        back[:] = 0
        there[:] = _noise(0)
        graph = gpu.record(taken, stream, copy)
        gpu.wait(stream)
        assert not back.any()  # recorded, and not run
        for seed in range(3):
            there[:] = _noise(seed)
            gpu.launch(graph, stream)
            gpu.wait(stream)
            np.testing.assert_array_equal(back, _noise(seed))


def an_error_ends_the_recording(gpu: Gpu) -> None:
    with ExitStack() as taken:
        stream, device = gpu.open_stream(taken), gpu.allocate(taken, _SIZE)
        there = gpu.allocate_pinned(taken, _SIZE)

        def fail() -> None:
            gpu.copy_in(device, there, _SIZE, stream)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            gpu.record(taken, stream, fail)
        gpu.wait(stream)  # an error where a stream still records
        graph = gpu.record(taken, stream, lambda: gpu.copy_in(device, there, _SIZE, stream))
        gpu.launch(graph, stream)
        gpu.wait(stream)


def what_cannot_be_recorded_is_an_error_and_ends_the_recording(gpu: Gpu) -> None:
    with ExitStack() as taken:
        stream = gpu.open_stream(taken)
        with pytest.raises(RuntimeFailure, match=r"cudaStreamSynchronize, error 900"):
            gpu.record(taken, stream, lambda: gpu.wait(stream))
        gpu.wait(stream)

        def spoil() -> None:
            with pytest.raises(RuntimeFailure, match="error 900"):
                gpu.wait(stream)

        # the work hides its error: the recording tells of it
        with pytest.raises(RuntimeFailure, match=r"cudaStreamEndCapture, error 901"):
            gpu.record(taken, stream, spoil)
        gpu.wait(stream)


def memory_is_given_back_in_the_opposite_order_after_the_work(gpu: Gpu) -> None:
    taken = ExitStack()
    stream, device = gpu.open_stream(taken), gpu.allocate(taken, _SIZE)
    there = gpu.allocate_pinned(taken, _SIZE)
    graph = gpu.record(taken, stream, lambda: gpu.copy_in(device, there, _SIZE, stream))
    for _ in range(10):
        gpu.launch(graph, stream)
    gpu.close(stream, taken)
    with pytest.raises(RuntimeFailure), ExitStack() as other:
        gpu.allocate(other, 1 << 50)
    with ExitStack() as other:  # an error leaves the GPU usable
        gpu.allocate(other, _SIZE)


CHECKS: list[Callable[[Gpu], None]] = [
    bytes_go_over_and_come_back,
    a_graph_does_again_what_was_recorded,
    an_error_ends_the_recording,
    what_cannot_be_recorded_is_an_error_and_ends_the_recording,
    memory_is_given_back_in_the_opposite_order_after_the_work,
]
