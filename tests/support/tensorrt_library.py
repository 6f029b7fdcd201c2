"""TensorRT without NVIDIA's library, under NVIDIA's names, that keeps TensorRT's rules.

An engine here "computes" the first bytes of each image as float32: the logits, then the domain
weights, then the features. `Machine` says where: on the fake CUDA, or with torch on a real GPU.
`tests/packaging/test_bindings.py` compares every name and parameter here with NVIDIA's bindings.

Source: TensorRT documentation, "CUDA Graphs" (Best Practices), Python API, `IExecutionContext`.
"""

from __future__ import annotations

import ctypes
import enum
import json
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tests.support.cuda_runtime import BrokenRule, FakeCuda, Work

OUTPUTS = ("logits", "domain_weights", "features")


class DataType(enum.IntEnum):
    FLOAT = 0
    HALF = 1
    UINT8 = 5


class TensorIOMode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING

    def __init__(self) -> None: ...

    def log(self, severity: Severity, msg: str) -> None: ...


class Machine(Protocol):
    """Where an engine computes."""

    def is_recording(self, stream: int) -> bool:
        """Whether a stream is being captured."""
        ...

    def is_thread_recording(self) -> bool:
        """Whether the calling thread captures a stream, as far as the machine knows."""
        ...

    def count_recordings(self) -> int:
        """How many streams are being captured."""
        ...

    def compute(self, stream: int, context: IExecutionContext, batch: int) -> bool:
        """Put the engine's work into a stream."""
        ...

    def is_in_graph(self, context: object) -> bool:
        """Whether a graph holds a context, as far as the machine knows."""
        ...

    def is_busy(self, context: object) -> bool:
        """Whether a context has work that is not done, as far as the machine knows."""
        ...


@dataclass
class FakePlan:
    """What a fake engine is, and what it refuses; its bytes are its JSON."""

    image_shape: tuple[int, ...] = (2, 2, 3)
    columns: tuple[int, ...] = (2, 1, 5)
    min_batch: int = 1
    opt_batch: int = 4
    max_batch: int = 8
    scratch: int = 1000
    scale: float = 1.0  # what the bytes are multiplied with
    fails: tuple[str, ...] = ()  # of context, shape, address, unset, enqueue

    def to_bytes(self) -> bytes:
        return json.dumps(vars(self)).encode()


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        self.engine, self._batch, self._has_run = engine, 0, False
        self.addresses: dict[str, int] = {}
        self._scratch = (0, 0)
        if strategy != ExecutionContextAllocationStrategy.USER_MANAGED:
            self._scratch = (1, engine.plan.scratch)
        engine.contexts.append(weakref.ref(self))

    def __del__(self) -> None:
        machine = self.engine.machine
        if machine.is_in_graph(self) or machine.is_busy(self):
            self.engine.broken.append("a context was destroyed before what needs it")

    def memory(self) -> tuple[int, ...]:
        return tuple(a for a in (*self.addresses.values(), self._scratch[0]) if a > 1)

    def set_device_memory(self, memory: int, size: int) -> None:
        if size < self.engine.plan.scratch or not memory:
            raise BrokenRule(f"{size} bytes of scratch memory for {self.engine.plan.scratch}")
        self._scratch = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._refuse_change("an address")
        if "address" in self.engine.plan.fails:
            self.engine.say(f"no tensor {name}")
            return False
        if "unset" not in self.engine.plan.fails:
            self.addresses[name] = memory
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self._refuse_change("a shape")
        plan = self.engine.plan
        batch, rest = shape[0], tuple(shape[1:])
        fits = plan.min_batch <= batch <= plan.max_batch and rest == tuple(plan.image_shape)
        if name != "images" or not fits or "shape" in plan.fails:
            self.engine.say(f"shape {list(shape)} is outside of the profile")
            return False
        if batch != self._batch:
            self._has_run = False
        self._batch = batch
        return True

    def _refuse_change(self, what: str) -> None:
        if self.engine.machine.is_thread_recording():
            raise BrokenRule(f"{what} is set while a stream is captured")
        if self.engine.machine.is_in_graph(self):
            raise BrokenRule(f"{what} of a context changes that a graph holds")

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.engine.machine.is_recording(stream_handle):
            if not self._has_run:
                raise BrokenRule("a capture before the first run of a shape")
            if self.engine.machine.is_in_graph(self):
                raise BrokenRule("two graphs hold one context")
        unset = {"images", *OUTPUTS} - set(self.addresses)
        if "enqueue" in self.engine.plan.fails or not self._batch or unset or not self._scratch[0]:
            self.engine.say(f"no address of {sorted(unset)}" if unset else "enqueue failed")
            return False
        self._has_run = True
        return self.engine.machine.compute(stream_handle, self, self._batch)


class ICudaEngine:
    def __init__(self, plan: FakePlan, machine: Machine, logger: Any) -> None:
        self.plan, self.machine, self._logger = plan, machine, logger
        self.contexts: list[weakref.ref[IExecutionContext]] = []
        self.broken: list[str] = []

    def say(self, text: str) -> None:
        self._logger.log(ILogger.ERROR, text)

    @property
    def device_memory_size_v2(self) -> int:
        return self.plan.scratch

    @property
    def num_io_tensors(self) -> int:
        return 1 + len(OUTPUTS)

    def get_tensor_name(self, index: int) -> str:
        return ("images", *OUTPUTS)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.UINT8 if name == "images" else DataType.FLOAT

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "images" else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name == "images":
            return (-1, *self.plan.image_shape)
        return (-1, self.plan.columns[OUTPUTS.index(name)])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert (name, profile_index) == ("images", 0)
        batches = (self.plan.min_batch, self.plan.opt_batch, self.plan.max_batch)
        return [(batch, *self.plan.image_shape) for batch in batches]

    def create_execution_context(
        self,
        strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC,
    ) -> IExecutionContext | None:
        if "context" in self.plan.fails:
            self.say("out of memory")
            return None
        return IExecutionContext(self, strategy)


class Runtime:
    library: Library
    engine_type = ICudaEngine

    def __init__(self, logger: ILogger) -> None:
        if self.library.is_broken:  # pybind11's words for a null pointer
            logger.log(ILogger.ERROR, "CUDA initialization failure")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        try:
            plan = FakePlan(**json.loads(serialized_engine))
        except ValueError:
            self._logger.log(ILogger.ERROR, "magicTag does not match")
            return None
        engine = self.engine_type(plan, self.library.machine, self._logger)
        self.library.engines.append(engine)
        return self.library.engines[-1]


@dataclass
class Library:
    """The module: `Library(machine)` stands in for `import tensorrt`.

    Attributes:
        engines: that were loaded.
    """

    machine: Machine
    is_broken: bool = False
    __version__: str = "11.4.0.106"
    engines: list[ICudaEngine] = field(default_factory=list)

    runtime_type = Runtime
    ILogger = ILogger
    DataType = DataType
    TensorIOMode = TensorIOMode
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    def __post_init__(self) -> None:
        self.Runtime = type("Runtime", (self.runtime_type,), {"library": self})


class FakeMachine:
    """Engines that compute on the fake CUDA."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        cuda.users.append(self._memory)
        self._contexts: weakref.WeakSet[IExecutionContext] = weakref.WeakSet()

    def _memory(self) -> tuple[int, ...]:
        return tuple(address for context in self._contexts for address in context.memory())

    def is_recording(self, stream: int) -> bool:
        return self._cuda.is_recording(stream)

    def is_thread_recording(self) -> bool:
        return threading.get_ident() in self._cuda.recording_threads()

    def count_recordings(self) -> int:
        return len(self._cuda.recording_threads())

    def is_in_graph(self, context: object) -> bool:
        return id(context) in self._cuda.users_of_graphs()

    def is_busy(self, context: object) -> bool:
        return id(context) in self._cuda.users_of_queues()

    def compute(self, stream: int, context: IExecutionContext, batch: int) -> bool:
        self._contexts.add(context)
        plan, addresses = context.engine.plan, dict(context.addresses)
        n_bytes = int(np.prod(plan.image_shape))
        self._cuda.check_memory(addresses["images"], batch * n_bytes, "device")
        for name, width in zip(OUTPUTS, plan.columns, strict=True):
            self._cuda.check_memory(addresses[name], batch * width * 4, "device")

        def run() -> None:
            images = _view(addresses["images"], batch * n_bytes, np.uint8).reshape(batch, -1)
            begin = 0
            for name, width in zip(OUTPUTS, plan.columns, strict=True):
                out = _view(addresses[name], batch * width, np.float32).reshape(batch, width)
                out[:] = images[:, begin : begin + width] * np.float32(plan.scale)
                begin += width

        work = Work(run, context.memory(), id(context))
        return self._cuda.put(stream, work) == 0


def _view(address: int, count: int, dtype: type) -> np.ndarray[Any, Any]:
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), dtype)


def expected_rows(images: np.ndarray[Any, Any], plan: FakePlan) -> list[np.ndarray[Any, Any]]:
    """What an engine of this plan computes, logits first."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    ends = np.cumsum(plan.columns)
    return [flat[:, end - width : end] for width, end in zip(plan.columns, ends, strict=True)]
