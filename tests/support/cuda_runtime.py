"""A CUDA runtime without a GPU that keeps CUDA's rules: streams, stream capture, graphs, lifetimes.

It stands in for the module `cuda.bindings.runtime`. What a stream is given is done when somebody
waits for it, so that a buffer that is changed too soon shows as wrong rows. Where CUDA returns an
error this returns the same one (`tests/support/cuda_rules.py` asks both); where CUDA would do
something undefined, `BrokenRule` is raised, and kept in `broken` should nobody see it.

Source: CUDA Runtime API, "Stream Management" and "Graph Management"; CUDA Programming Guide, "CUDA
Graphs", prohibited and unhandled operations.
"""

# ruff: noqa: N801, N802, N803, N815  NVIDIA's own names
from __future__ import annotations

import ctypes
import enum
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Address = int


class BrokenRule(AssertionError):
    """Something that is undefined on a GPU."""


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorIllegalState = 401
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class cudaStreamCaptureStatus(enum.IntEnum):
    cudaStreamCaptureStatusNone = 0
    cudaStreamCaptureStatusActive = 1
    cudaStreamCaptureStatusInvalidated = 2


@dataclass(frozen=True)
class Work:
    """What a stream has to do.

    Attributes:
        run: does it.
        memory: addresses that it reads or writes.
        user: what must live until it is done and, in a graph, as long as the graph.
        check: raises BrokenRule where `user` has changed since.
    """

    run: Callable[[], None]
    memory: tuple[Address, ...]
    user: object = None
    check: Callable[[], None] = lambda: None


@dataclass
class _Stream:
    queue: list[Work] = field(default_factory=list)
    recorded: list[Work] | None = None  # while it captures
    mode: cudaStreamCaptureMode = cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
    thread: int = 0
    is_invalid: bool = False


@dataclass(frozen=True)
class _Properties:
    name: bytes


_OK = cudaError_t.cudaSuccess
_INVALID = cudaError_t.cudaErrorInvalidValue
_UNSUPPORTED = cudaError_t.cudaErrorStreamCaptureUnsupported


class FakeCuda:
    """See the module.

    Args:
        devices: how many GPUs there are.
        memory: bytes of each kind of memory that can be had.

    Attributes:
        broken: rules that were broken.
        calls: names of all calls, for what a test wants to know of their order.
    """

    cudaError_t = cudaError_t
    cudaDeviceAttr = cudaDeviceAttr
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamCaptureStatus = cudaStreamCaptureStatus
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2

    def __init__(self, devices: int = 1, memory: int = 1 << 30) -> None:
        self._devices, self._free = devices, {"device": memory, "host": memory}
        self._memory: dict[Address, tuple[str, Any]] = {}
        self._streams: dict[int, _Stream] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._executables: dict[int, list[Work]] = {}
        self._events: dict[int, int | None] = {}  # the stream whose work an event stands for
        self._handles = itertools.count(1)
        self._device = threading.local()
        self._lock = threading.RLock()
        self.users: list[Callable[[], tuple[Address, ...]]] = []  # of what stands on memory
        self.broken: list[str] = []
        self.kept_streams: set[int] = set()  # that a process keeps until it ends
        self.calls: list[str] = []

    def break_rule(self, text: str) -> BrokenRule:
        """Note a broken rule; the caller raises it where it can."""
        self.broken.append(text)
        return BrokenRule(text)

    def assert_empty(self) -> None:
        """Nothing is left of what was taken, and no rule was broken."""
        assert self.broken == []
        assert (self._memory, self._graphs, self._executables, self._events) == ({}, {}, {}, {})
        assert self._streams.keys() == self.kept_streams

    # the device

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return (_OK, self._devices) if self._devices else (cudaError_t.cudaErrorNoDevice, None)

    def cudaGetDevice(self) -> tuple[Any, ...]:
        return _OK, getattr(self._device, "index", 0)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        self._device.index = device
        return (_OK,)

    def cudaDeviceGetAttribute(self, attr: cudaDeviceAttr, device: int) -> tuple[Any, ...]:
        return _OK, {75: 9, 76: 0}[attr]

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        return _OK, _Properties(b"Fake H100")

    def cudaGetErrorString(self, error: cudaError_t) -> tuple[Any, ...]:
        return _OK, error.name.encode()

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (_OK,)

    # memory

    def _allocate(self, kind: str, size: int) -> tuple[Any, ...]:
        with self._lock:
            if not self._is_safe():
                return _UNSUPPORTED, None
            if size > self._free[kind]:
                return cudaError_t.cudaErrorMemoryAllocation, None
            self._free[kind] -= size
            memory = ctypes.create_string_buffer(size)
            address = ctypes.addressof(memory)
            self._memory[address] = (kind, memory)
            return _OK, address

    def _release(self, kind: str, address: Address) -> tuple[Any, ...]:
        with self._lock:
            if self._memory.get(address, ("", None))[0] != kind:
                return (_INVALID,)
            if not self._is_safe():
                return (_UNSUPPORTED,)
            for stream in self._streams.values():  # CUDA waits for what runs
                self._drain(stream)
            for works in self._executables.values():
                if any(self._find(used) == address for work in works for used in work.memory):
                    self.break_rule("memory was freed before a graph that uses it")
            if any(self._find(used) == address for user in self.users for used in user()):
                self.break_rule("memory was freed before an execution context that uses it")
            self._free[kind] += ctypes.sizeof(self._memory.pop(address)[1])
            return (_OK,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate("device", size)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._allocate("host", size)

    def cudaFree(self, devPtr: Address) -> tuple[Any, ...]:
        return self._release("device", devPtr)

    def cudaFreeHost(self, ptr: Address) -> tuple[Any, ...]:
        return self._release("host", ptr)

    def _find(self, address: Address) -> Address | None:
        """The start of the memory that an address is in."""
        for start, (_, memory) in self._memory.items():
            if start <= address < start + ctypes.sizeof(memory):
                return start
        return None

    def check_memory(self, address: Address, size: int, kind: str) -> None:
        """Refuse what is not memory of this kind, or ends before `size` bytes."""
        start = self._find(address)
        if start is None:
            raise self.break_rule(f"no {kind} memory at this address")
        found, memory = self._memory[start]
        if found != kind or address + size > start + ctypes.sizeof(memory):
            raise self.break_rule(f"{size} bytes of {kind} memory, found less, or {found} memory")

    # streams

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        if flags != self.cudaStreamNonBlocking:
            raise self.break_rule("a stream that waits for others")
        handle = next(self._handles)
        self._streams[handle] = _Stream()
        return _OK, handle

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        with self._lock:
            self._drain(self._streams.pop(stream))
            return (_OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        with self._lock:
            found = self._streams[stream]
            if found.recorded is not None:
                found.is_invalid = True
                return (_UNSUPPORTED,)
            self._drain(found)
            return (_OK,)

    def cudaMemcpyAsync(
        self, dst: Address, src: Address, count: int, kind: cudaMemcpyKind, stream: int
    ) -> tuple[Any, ...]:
        kinds = ("device", "host")
        if kind != cudaMemcpyKind.cudaMemcpyHostToDevice:
            kinds = ("host", "device")
        self.check_memory(dst, count, kinds[0])
        self.check_memory(src, count, kinds[1])
        return (self.put(stream, Work(lambda: ctypes.memmove(dst, src, count), (dst, src))),)

    def put(self, stream: int, work: Work) -> cudaError_t:
        """Give a stream work, or record it."""
        with self._lock:
            found = self._streams[stream]
            if found.recorded is None:
                found.queue.append(work)
            elif found.is_invalid:
                return cudaError_t.cudaErrorStreamCaptureInvalidated
            else:
                found.recorded.append(work)
            return _OK

    def _drain(self, stream: _Stream) -> None:
        queue, stream.queue = stream.queue, []
        self._run(queue)

    def _run(self, queue: list[Work]) -> None:
        for work in queue:
            for address in work.memory:
                if self._find(address) is None:
                    raise self.break_rule("work on memory that was freed")
            work.run()

    # events

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        if flags != self.cudaEventDisableTiming:
            raise self.break_rule("an event that takes the time")
        handle = next(self._handles)
        self._events[handle] = None
        return _OK, handle

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:
        del self._events[event]
        return (_OK,)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        self._events[event] = stream
        return (_OK,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any, ...]:
        first = self._events[event]
        if first is None or flags:
            raise self.break_rule("waiting for an event that was never recorded")
        before = self._streams[first].queue[:]

        def finish() -> None:
            # work of the first stream up to the event; what came later stays where it is
            waiting = self._streams[first].queue
            done = [work for work in waiting if any(work is one for one in before)]
            self._streams[first].queue = [w for w in waiting if not any(w is d for d in done)]
            self._run(done)

        return (self.put(stream, Work(finish, ())),)

    # stream capture and graphs

    def is_recording(self, stream: int) -> bool:
        """Whether a stream captures."""
        return self._streams[stream].recorded is not None

    def recording_threads(self) -> set[int]:
        """The threads whose streams capture."""
        with self._lock:
            return {one.thread for one in self._streams.values() if one.recorded is not None}

    def _is_safe(self) -> bool:
        """Whether calls that may wait for the whole GPU are allowed; if not, captures end."""
        relaxed = cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        everywhere = cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
        safe = True
        for stream in self._streams.values():
            if stream.recorded is None or stream.mode == relaxed:
                continue
            if stream.mode == everywhere or stream.thread == threading.get_ident():
                stream.is_invalid, safe = True, False
        return safe

    def cudaStreamIsCapturing(self, stream: int) -> tuple[Any, ...]:
        found = self._streams[stream]
        return _OK, cudaStreamCaptureStatus(
            0 if found.recorded is None else 2 if found.is_invalid else 1
        )

    def cudaStreamBeginCapture(self, stream: int, mode: cudaStreamCaptureMode) -> tuple[Any, ...]:
        with self._lock:
            found = self._streams[stream]
            if found.recorded is not None:
                return (cudaError_t.cudaErrorIllegalState,)
            found.recorded, found.is_invalid = [], False
            found.mode, found.thread = mode, threading.get_ident()
            self.calls.append("begin")
            return (_OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        with self._lock:
            found = self._streams[stream]
            if found.recorded is None:
                return cudaError_t.cudaErrorIllegalState, None
            works, found.recorded = found.recorded, None
            self.calls.append("end")
            if found.is_invalid:
                return cudaError_t.cudaErrorStreamCaptureInvalidated, None
            handle = next(self._handles)
            self._graphs[handle] = works
            return _OK, handle

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        handle = next(self._handles)
        self._executables[handle] = list(self._graphs[graph])
        return _OK, handle

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        del self._graphs[graph]
        return (_OK,)

    def cudaGraphExecDestroy(self, graphExec: int) -> tuple[Any, ...]:
        del self._executables[graphExec]
        return (_OK,)

    def cudaGraphLaunch(self, graphExec: int, stream: int) -> tuple[Any, ...]:
        self.calls.append("launch")
        for work in self._executables[graphExec]:
            work.check()
            self.put(stream, work)
        return (_OK,)

    def users_of_graphs(self) -> list[object]:
        """Those of the work that graphs hold, or that is being recorded."""
        recording = [stream.recorded or [] for stream in self._streams.values()]
        works = [*self._graphs.values(), *self._executables.values(), *recording]
        return [work.user for one in works for work in one]

    def users_of_queues(self) -> list[object]:
        """Those of the work that is not done."""
        return [work.user for stream in self._streams.values() for work in stream.queue]
