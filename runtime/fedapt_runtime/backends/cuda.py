"""The few calls of the CUDA runtime that running an engine takes; an error is never passed over.

Source: NVIDIA's cuda-bindings, module `cuda.bindings.runtime`; CUDA Runtime API.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.errors import MissingDependency, RuntimeFailure


def import_cuda() -> Any:
    """Return the module `cuda.bindings.runtime`.

    Raises:
        MissingDependency: cuda-bindings is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingDependency(
            where="cuda-bindings",
            found=f"no usable cuda-bindings ({error})",
            expected="NVIDIA's cuda-bindings, through which engines are run",
            next_step="pip install 'fedapt-runtime[rtx]', or [tensorrt]",
        ) from error
    return runtime


class Gpu:
    """The first GPU: memory, streams, copies and graphs.

    Attributes:
        name: as the driver calls it.
        capability: `sm89` and the like.

    Raises:
        MissingDependency: cuda-bindings is not installed.
        RuntimeFailure: there is no GPU, or no driver that CUDA could use.
    """

    def __init__(self) -> None:
        self._cuda = import_cuda()
        if not self._call("GetDeviceCount"):
            raise _refuse("no NVIDIA GPU")
        attributes = self._cuda.cudaDeviceAttr
        major = self._call("DeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, 0)
        minor = self._call("DeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, 0)
        self.capability = f"sm{major}{minor}"
        self.name = self._call("GetDeviceProperties", 0).name.decode()

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call cuda<name>; its result, if it has one."""
        error, *results = getattr(self._cuda, f"cuda{name}")(*arguments)
        if error != self._cuda.cudaError_t.cudaSuccess:
            text = self._cuda.cudaGetErrorString(error)[1].decode()
            raise _refuse(f"{text} (cuda{name}, error {int(error)})")
        return results[0] if results else None

    def allocate(self, n_bytes: int) -> int:
        """The address of device memory."""
        return int(self._call("Malloc", n_bytes))

    def allocate_pinned(self, n_bytes: int) -> NDArray[np.uint8]:
        """Host memory that the GPU copies from and to without a detour: uint8 [n_bytes]."""
        address = int(self._call("MallocHost", n_bytes))
        memory = (ctypes.c_ubyte * n_bytes).from_address(address)
        return np.ctypeslib.as_array(memory)

    def open_stream(self) -> int:
        """A stream that waits for no other."""
        return int(self._call("StreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def copy_in(self, device: int, host: NDArray[np.uint8], n_bytes: int, stream: int) -> None:
        """Begin to copy from pinned memory to the GPU."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("MemcpyAsync", device, host.ctypes.data, n_bytes, kind, stream)

    def copy_out(self, host: NDArray[np.uint8], device: int, n_bytes: int, stream: int) -> None:
        """Begin to copy from the GPU to pinned memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("MemcpyAsync", host.ctypes.data, device, n_bytes, kind, stream)

    def begin_capture(self, stream: int) -> None:
        """From here on, what is put into the stream is recorded and not run."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("StreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> Any:
        """What was recorded, ready to be launched."""
        recorded = self._call("StreamEndCapture", stream)
        try:
            return self._call("GraphInstantiate", recorded, 0)
        finally:
            self._call("GraphDestroy", recorded)

    def launch(self, graph: Any, stream: int) -> None:
        """Run what was recorded."""
        self._call("GraphLaunch", graph, stream)

    def wait(self, stream: int) -> None:
        """Until everything in the stream is done."""
        self._call("StreamSynchronize", stream)

    def free(
        self, stream: int, device: list[int], pinned: list[NDArray[np.uint8]], graphs: list[Any]
    ) -> None:
        """Give back what was taken, as far as CUDA still stands: errors have no reader here."""
        for graph in graphs:
            self._cuda.cudaGraphExecDestroy(graph)
        for address in device:
            self._cuda.cudaFree(address)
        for array in pinned:
            self._cuda.cudaFreeHost(array.ctypes.data)
        self._cuda.cudaStreamDestroy(stream)


def _refuse(found: str) -> RuntimeFailure:
    return RuntimeFailure(
        where="CUDA",
        found=found,
        expected="an NVIDIA GPU with its driver, which an engine needs",
        next_step="check `nvidia-smi`, or run the model.onnx of the engine, also without a GPU",
    )
