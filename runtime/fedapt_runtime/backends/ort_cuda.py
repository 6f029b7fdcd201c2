"""ONNX Runtime on a CUDA GPU: copies beside the computation, a CUDA graph for each size of batch.

One session computes in one CUDA stream. Each batch stream has buffers and a copy stream of its own:

    copy stream      images to the GPU . . . . . . . . . . . outputs to the host
    compute stream                        the fused graph

so that one batch is copied while another is computed. Images cross the bus once, as uint8. A batch
size that is recorded as a CUDA graph is launched as a whole. Below about 64 images, this determines
the speed (`benchmarks/gpu.py`). The first run of a batch size takes up to four seconds, because
cuDNN plans every convolution and the graph is recorded. Batches are therefore padded to one of four
sizes.

Source: ONNX Runtime documentation, "CUDA Execution Provider" (I/O binding, CUDA graphs,
`user_compute_stream`, `use_tf32`).
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.backends.cuda import Gpu
from fedapt_runtime.backends.streams import StreamPool
from fedapt_runtime.errors import RuntimeFailure, first_line
from fedapt_runtime.head import Tensor

# images of one run; a larger batch is divided into parts of the last size
SIZES = (1, 8, 64, 128)
DEFAULT_BATCH = 64
STREAMS = 2
_NO_GRAPH = "-1"


class ComputeStream(NamedTuple):
    """The CUDA stream in which sessions compute, one run at a time.

    Attributes:
        lock: held during a run, because the recording of a graph affects the whole process.
    """

    gpu: Gpu
    stream: int
    lock: threading.Lock

    def options(self, graphs: bool) -> dict[str, str]:
        """Options of the CUDA execution provider for a session in this stream."""
        return {"user_compute_stream": str(self.stream), "enable_cuda_graph": str(int(graphs))}


@functools.cache
def open_compute_stream() -> ComputeStream:
    """The compute stream of this process. It stays open until the process ends.

    Raises:
        MissingDependency: cuda-bindings is not installed.
        RuntimeFailure: no GPU.
    """
    gpu = Gpu()
    with gpu.current(), ExitStack() as taken:
        stream = gpu.open_stream(taken)
        taken.pop_all()
    return ComputeStream(gpu, stream, threading.Lock())


def open_streams(
    onnxruntime: Any,
    session: Any,
    compute: ComputeStream,
    head: Mapping[str, Tensor],
    image_shape: tuple[int, int, int],
    where: object,
) -> StreamPool:
    """The streams through which batches reach a session.

    Args:
        session: on the CUDA provider, opened with `compute.options`.
        head: inputs of the graph beside the images; they are copied to the GPU once.
        image_shape: height, width and 3.
        where: the model, for messages.

    Raises:
        RuntimeFailure: too little memory; `StreamPool.run` too.
    """
    on_gpu = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), "cuda", 0)
        for name, value in head.items()
    }
    # the widths of the outputs, from one black image
    black = np.zeros((1, *image_shape), np.uint8)
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", _NO_GRAPH)
    try:
        with compute.lock:
            rows = session.run(list(Outputs._fields), {"images": black, **head}, options)
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise _failed(where, error) from error
    widths = [int(row.shape[-1]) for row in rows]
    streams = [
        OrtCudaStream(onnxruntime, session, compute, on_gpu, image_shape, widths, where, i)
        for i in range(STREAMS)
    ]
    return StreamPool(streams, 1, SIZES[-1])


class OrtCudaStream:
    """Buffers and a copy stream beside a session; see `streams.BatchStream`."""

    def __init__(
        self,
        onnxruntime: Any,
        session: Any,
        compute: ComputeStream,
        head: Mapping[str, Any],
        image_shape: tuple[int, int, int],
        widths: list[int],
        where: object,
        number: int,
    ) -> None:
        self._ort, self._session, self._compute, self._head = onnxruntime, session, compute, head
        self._image_shape, self._widths, self._where = image_shape, widths, where
        self._number, self._batch = number, 0
        self._bindings: dict[int, tuple[Any, Any]] = {}
        gpu = self._gpu = compute.gpu
        sizes = [SIZES[-1] * n for n in (int(np.prod(image_shape)), *(4 * w for w in widths))]
        with gpu.current(), ExitStack() as taken:
            self._stream = gpu.open_stream(taken)
            self._event = gpu.open_event(taken)
            self._device = [gpu.allocate(taken, size) for size in sizes]
            self._pinned = [gpu.allocate_pinned(taken, size) for size in sizes]
            # the bindings and the session's graphs refer to the buffers
            taken.callback(self._bindings.clear)
            self._taken = taken.pop_all()
        weakref.finalize(self, gpu.close, self._stream, self._taken)

    def start(self, images: NDArray[np.uint8]) -> None:
        """See `streams.BatchStream.start`."""
        gpu, flat = self._gpu, images.reshape(-1)
        self._batch = len(images)
        # rows beyond the batch are computed from old content of the buffer, and not read
        size = next(size for size in SIZES if size >= self._batch)
        with gpu.current():
            self._pinned[0][: flat.size] = flat
            gpu.copy_in(self._device[0], self._pinned[0], flat.size, self._stream)
            # one run at a time: ONNX Runtime records a graph for the whole process
            with self._compute.lock:
                gpu.order(self._stream, self._compute.stream, self._event)
                binding, options = self._bind(size)
                try:
                    self._session.run_with_iobinding(binding, options)
                except Exception as error:
                    raise _failed(self._where, error) from error
                gpu.order(self._compute.stream, self._stream, self._event)
            for host, device, width in zip(
                self._pinned[1:], self._device[1:], self._widths, strict=True
            ):
                gpu.copy_out(host, device, 4 * width * self._batch, self._stream)

    def _bind(self, batch: int) -> tuple[Any, Any]:
        """The buffers as inputs and outputs of a size of batch, and its graph."""
        if batch in self._bindings:
            return self._bindings[batch]
        binding, options = self._session.io_binding(), self._ort.RunOptions()
        binding.bind_input(
            "images", "cuda", 0, np.uint8, (batch, *self._image_shape), self._device[0]
        )
        for name, value in self._head.items():
            binding.bind_ortvalue_input(name, value)
        outputs = zip(Outputs._fields, self._widths, self._device[1:], strict=True)
        for name, width, address in outputs:
            binding.bind_output(name, "cuda", 0, np.float32, (batch, width), address)
        options.add_run_config_entry("gpu_graph_id", str(1 + batch * STREAMS + self._number))
        # later work in the stream waits for the run; this thread does not
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._bindings[batch] = binding, options
        return binding, options

    def finish(self) -> Outputs:
        """See `streams.BatchStream.finish`."""
        with self._gpu.current():
            self._gpu.wait(self._stream)
        return Outputs(
            *(
                host[: 4 * self._batch * width].view(np.float32).reshape(-1, width).copy()
                for host, width in zip(self._pinned[1:], self._widths, strict=True)
            )
        )


def _failed(where: object, error: Exception) -> RuntimeFailure:
    return RuntimeFailure(
        where=where,
        found=f"a graph that does not run on CUDA ({first_line(error)})",
        expected="a model that ONNX Runtime computes on this GPU",
        next_step="free the GPU's memory, or choose device cpu",
    )
