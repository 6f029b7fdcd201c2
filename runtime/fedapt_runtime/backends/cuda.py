"""The calls of the CUDA runtime that a TensorRT engine needs; every error is checked.

Every resource of the GPU is pushed onto an `ExitStack`, which releases resources in the opposite
order. No resource is freed while another one uses it.

Source: NVIDIA's cuda-bindings, module `cuda.bindings.runtime`; CUDA Runtime API, "Stream
Management", "Graph Management"; CUDA Programming Guide, "CUDA Graphs", stream capture.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.errors import MissingDependency, RuntimeFailure

_DEVICE = 0  # CUDA counts the GPUs that CUDA_VISIBLE_DEVICES names, in that order


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
            expected="NVIDIA's cuda-bindings, which run TensorRT engines",
            next_step="pip install 'fedapt-runtime[rtx]', or [tensorrt]",
        ) from error
    return runtime


class Gpu:
    """The first GPU that CUDA_VISIBLE_DEVICES names: memory, streams, copies and graphs.

    Only the first allocation takes memory of the GPU. Addresses, streams and sizes are integers;
    sizes are in bytes.

    Attributes:
        name: the driver's name of the GPU.
        capability: compute capability, such as `sm89`.

    Raises:
        MissingDependency: cuda-bindings is not installed.
        RuntimeFailure: there is no GPU, or no driver that CUDA can use. Every method raises it too,
            with CUDA's message.
    """

    def __init__(self) -> None:
        self._cuda = import_cuda()
        if not self._call("GetDeviceCount"):
            raise _refuse("no NVIDIA GPU")
        attributes = self._cuda.cudaDeviceAttr
        major, minor = (
            self._call("DeviceGetAttribute", attribute, _DEVICE)
            for attribute in (
                attributes.cudaDevAttrComputeCapabilityMajor,
                attributes.cudaDevAttrComputeCapabilityMinor,
            )
        )
        self.capability = f"sm{major}{minor}"
        self.name: str = self._call("GetDeviceProperties", _DEVICE).name.decode()

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call cuda<name>; its result, if it has one."""
        try:
            error, *results = getattr(self._cuda, f"cuda{name}")(*arguments)
        except RuntimeError as failure:  # cuda-bindings 12 raises where there is no driver
            raise _refuse(f"{failure} (cuda{name})") from failure
        if error != self._cuda.cudaError_t.cudaSuccess:
            self._cuda.cudaGetLastError()  # clears the error, else another library would see it
            if error == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
                raise _refuse_size()
            text = self._cuda.cudaGetErrorString(error)[1].decode()
            raise _refuse(f"{text} (cuda{name}, error {int(error)})")
        return results[0] if results else None

    def _give_back(self, name: str, resource: Any) -> None:
        """Free a resource; ignores errors, because CUDA may have shut down at the process's end."""
        getattr(self._cuda, f"cuda{name}")(resource)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this the calling thread's GPU, and restore the former one afterwards."""
        former = self._call("GetDevice")
        if former == _DEVICE:
            yield
            return
        self._call("SetDevice", _DEVICE)
        try:
            yield
        finally:
            self._call("SetDevice", former)

    def allocate(self, taken: ExitStack, n_bytes: int) -> int:
        """The address of device memory, aligned to 256 bytes."""
        address = int(self._call("Malloc", n_bytes))
        taken.callback(self._give_back, "Free", address)
        return address

    def allocate_pinned(self, taken: ExitStack, n_bytes: int) -> NDArray[np.uint8]:
        """Host memory that the GPU copies directly: uint8 [n_bytes].

        The array is valid until `taken` is closed.
        """
        address = int(self._call("MallocHost", n_bytes))
        taken.callback(self._give_back, "FreeHost", address)
        memory = (ctypes.c_ubyte * n_bytes).from_address(address)
        return np.ctypeslib.as_array(memory)

    def open_stream(self, taken: ExitStack) -> int:
        """A stream that does not synchronise with the default stream."""
        stream = int(self._call("StreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))
        taken.callback(self._give_back, "StreamDestroy", stream)
        return stream

    def open_event(self, taken: ExitStack) -> Any:
        """An event for `order`."""
        flag = self._cuda.cudaEventDisableTiming
        event = self._call("EventCreateWithFlags", flag)
        taken.callback(self._give_back, "EventDestroy", event)
        return event

    def order(self, first: int, second: int, event: Any) -> None:
        """Make later work in stream `second` wait for the present work in stream `first`."""
        self._call("EventRecord", event, first)
        self._call("StreamWaitEvent", second, event, 0)

    def copy_in(self, device: int, host: NDArray[np.uint8], n_bytes: int, stream: int) -> None:
        """Begin to copy from pinned memory to the GPU."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("MemcpyAsync", device, host.ctypes.data, n_bytes, kind, stream)

    def copy_out(self, host: NDArray[np.uint8], device: int, n_bytes: int, stream: int) -> None:
        """Begin to copy from the GPU to pinned memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("MemcpyAsync", host.ctypes.data, device, n_bytes, kind, stream)

    def record(self, taken: ExitStack, stream: int, work: Callable[[], None]) -> Any:
        """A CUDA graph of the operations of `work`, ready to launch; runs none of them.

        The recording has ended when this returns or raises.
        """
        # in other modes, memory that Python's garbage collector frees would end the recording
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        self._call("StreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            _, recorded = self._cuda.cudaStreamEndCapture(stream)
            if recorded is not None and int(recorded):
                self._give_back("GraphDestroy", recorded)
            self._cuda.cudaGetLastError()
            raise
        recorded = self._call("StreamEndCapture", stream)
        try:
            graph = self._call("GraphInstantiate", recorded, 0)
        finally:
            self._give_back("GraphDestroy", recorded)
        taken.callback(self._give_back, "GraphExecDestroy", graph)
        return graph

    def launch(self, graph: Any, stream: int) -> None:
        """Run a recorded graph."""
        self._call("GraphLaunch", graph, stream)

    def wait(self, stream: int) -> None:
        """Wait until all work in the stream is complete."""
        self._call("StreamSynchronize", stream)

    def close(self, stream: int, taken: ExitStack) -> None:
        """Wait for the stream, then free its resources in the opposite order of their creation."""
        self._give_back("StreamSynchronize", stream)
        taken.close()


def _refuse(found: str) -> RuntimeFailure:
    return RuntimeFailure(
        where="CUDA",
        found=found,
        expected="an NVIDIA GPU with its driver, which a TensorRT engine needs",
        next_step="check `nvidia-smi` and CUDA_VISIBLE_DEVICES, or run the model.onnx of the"
        " engine, also without a GPU",
    )


def _refuse_size() -> RuntimeFailure:
    return RuntimeFailure(
        where="CUDA",
        found="too little GPU memory, or too little pinned host memory",
        expected="memory for the engine's batches",
        next_step="free the GPU's memory, or build the engine for smaller batches",
    )
