"""A CUDA stream with its buffers, and the execution contexts that compute in it.

CUDA graphs of TensorRT follow NVIDIA's rules. A graph holds the state of its execution context at
the recording, so each graph has its own context. A context runs once after its shape is set and
before it is recorded. A recording contains only copies and the engine. The contexts of a stream
compute one after the other and share one block of scratch memory.

Source: TensorRT documentation, "CUDA Graphs" (Best Practices) and `IExecutionContext`,
"setDeviceMemory"; TensorRT-RTX documentation, "CUDA graphs".
"""

from __future__ import annotations

import functools
import weakref
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.backends.cuda import Gpu
from fedapt_runtime.backends.engine_plan import EnginePlan

MAX_GRAPHS = 8  # per stream: one for each of the first batch sizes that repeat


class EngineStream:
    """A `streams.BatchStream` that runs a TensorRT engine.

    Args:
        gpu: GPU on which the engine was loaded.
        plan: the engine.

    Raises:
        RuntimeFailure: too little memory, or the library refuses a call. `start` and `finish` raise
            it too.
    """

    def __init__(self, gpu: Gpu, plan: EnginePlan) -> None:
        self._gpu, self._plan, self._batch = gpu, plan, 0
        # batch size -> its own context; key 0 -> the context of all other sizes
        self._contexts: dict[int, Any] = {}
        self._graphs: dict[int, Any] = {}
        self._seen: set[int] = set()  # batch sizes that context 0 has run
        self._ready: set[int] = set()  # batch sizes that their own context has run
        with gpu.current(), ExitStack() as taken:
            # freed in the opposite order: graphs, contexts, buffers, stream
            self._stream = gpu.open_stream(taken)
            sizes = [plan.max_batch * size for size in (plan.image_bytes, *plan.row_bytes)]
            self._device = [gpu.allocate(taken, size) for size in sizes]
            self._pinned = [gpu.allocate_pinned(taken, size) for size in sizes]
            # TensorRT-RTX compiles kernels for a shape at run time, and records graphs itself
            self._records = plan.flavour == "tensorrt"
            self._scratch = 0
            if self._records:
                self._scratch = gpu.allocate(taken, plan.scratch_bytes)
            taken.callback(self._contexts.clear)
            self._open_context(0)
            self._taken = taken.pop_all()
        weakref.finalize(self, gpu.close, self._stream, self._taken)

    def _open_context(self, key: int) -> None:
        self._contexts[key] = self._plan.open_context(self._scratch)
        for name, address in zip(("images", *Outputs._fields), self._device, strict=True):
            if not self._contexts[key].set_tensor_address(name, address):
                raise self._plan.fail(f"an engine that refuses an address for {name}")

    def start(self, images: NDArray[np.uint8]) -> None:
        """See `streams.BatchStream.start`."""
        batch, flat = len(images), images.reshape(-1)
        with self._gpu.current():
            self._pinned[0][: flat.size] = flat
            if batch in self._graphs:
                self._gpu.launch(self._graphs[batch], self._stream)
            elif batch in self._ready:
                work = functools.partial(self._put, batch, batch)
                self._graphs[batch] = self._gpu.record(self._taken, self._stream, work)
                self._gpu.launch(self._graphs[batch], self._stream)
            else:
                self._run_without_graph(batch)
        self._batch = batch

    def _run_without_graph(self, batch: int) -> None:
        key = self._choose_context(batch)
        if not self._contexts[key].set_input_shape("images", (batch, *self._plan.image_shape)):
            raise self._plan.fail(f"an engine that refuses a batch of {batch}")
        self._put(key, batch)
        (self._ready if key else self._seen).add(batch)

    def _choose_context(self, batch: int) -> int:
        """A repeated size gets its own context, up to a maximum number."""
        if not self._records or batch not in self._seen:
            return 0
        if batch not in self._contexts:
            if len(self._contexts) > MAX_GRAPHS:
                return 0
            self._open_context(batch)
        return batch

    def _put(self, key: int, batch: int) -> None:
        """Put the copies and the computation into the stream, or into the graph being recorded."""
        n_bytes = batch * self._plan.image_bytes
        self._gpu.copy_in(self._device[0], self._pinned[0], n_bytes, self._stream)
        if not self._contexts[key].execute_async_v3(self._stream):
            raise self._plan.fail(f"an engine that does not run a batch of {batch}")
        outputs = zip(self._pinned[1:], self._device[1:], self._plan.row_bytes, strict=True)
        for host, device, row in outputs:
            self._gpu.copy_out(host, device, batch * row, self._stream)

    def finish(self) -> Outputs:
        """See `streams.BatchStream.finish`."""
        with self._gpu.current():
            self._gpu.wait(self._stream)
        return Outputs(
            *(
                host[: self._batch * row].view(np.float32).reshape(self._batch, -1).copy()
                for host, row in zip(self._pinned[1:], self._plan.row_bytes, strict=True)
            )
        )
