"""A TensorRT plan, loaded by the library that built it.

The bindings are pybind11's. A constructor whose factory returns null raises TypeError; any other
failed call returns None or False and logs the reason. Each failure becomes an error of this package
with the library's own message. The bindings keep objects alive that others need: a context keeps
its engine, an engine its runtime, a runtime its logger.

Source: TensorRT documentation, "Inference with the Python API" (10, 11 and RTX share these names).
"""

from __future__ import annotations

import importlib
import math
from typing import Any

from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.backends.engine_file import EngineFile
from fedapt_runtime.backends.model_checks import Slot, check_signature
from fedapt_runtime.errors import MissingDependency, ModelFileError, RuntimeFailure

MODULES = {"rtx": "tensorrt_rtx_bindings", "tensorrt": "tensorrt"}
_FLOAT32_BYTES = 4
_MAX_MESSAGE = 300  # characters of the library's messages in an error


def import_library(flavour: str) -> Any:
    """Return the module of a flavour of TensorRT.

    Raises:
        MissingDependency: the library is not installed or does not load.
    """
    try:
        return importlib.import_module(MODULES[flavour])
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        raise MissingDependency(
            where=MODULES[flavour],
            found=f"no usable {MODULES[flavour]} ({error})",
            expected="the library that built the engine",
            next_step=f"pip install 'fedapt-runtime[{flavour}]'",
        ) from error


class EnginePlan:
    """An engine in the library that runs it.

    Args:
        trt: the library's module, from `import_library`.
        engine_file: the plan and its description.

    Attributes:
        flavour: a key of `MODULES`.
        engine: the library's ICudaEngine.
        min_batch, max_batch: minimum and maximum size of a batch.
        image_shape: height, width, 3.
        image_bytes: bytes of one image.
        row_bytes: bytes of one row of each output, all float32.
        scratch_bytes: bytes of device memory that an execution context needs.

    Raises:
        RuntimeFailure: the library does not start.
        ModelFileError: the library refuses the plan, or the plan is not of a fedapt model.
    """

    def __init__(self, trt: Any, engine_file: EngineFile) -> None:
        self._trt, self._file, self.flavour = trt, engine_file, engine_file.flavour
        self.min_batch, self.max_batch = engine_file.min_batch, engine_file.max_batch
        self._listener = _make_listener(trt)
        try:
            self._runtime = trt.Runtime(self._listener)
        except TypeError as error:
            raise self.fail(f"{self._library} that fails to start") from error
        self.engine = self._load()
        inputs, outputs = read_slots(trt, self.engine)
        check_signature(inputs, outputs, engine_file.manifest, engine_file.path)
        self.image_shape = (*engine_file.manifest.preprocessing.size, 3)
        self.image_bytes = math.prod(self.image_shape)
        columns = [outputs[name][1][0] for name in Outputs._fields]
        if None in columns:
            raise self.fail(f"outputs of unknown width, {outputs}")
        self.row_bytes = [_FLOAT32_BYTES * (width or 0) for width in columns]
        # TensorRT 10.0 has only the first name, 11 only the second
        old = getattr(self.engine, "device_memory_size", 0)
        self.scratch_bytes = max(1, int(getattr(self.engine, "device_memory_size_v2", old)))

    @property
    def _library(self) -> str:
        return f"{self._file.library} {self._trt.__version__}"

    def _load(self) -> Any:
        plan = self._file.path.read_bytes()
        engine, reasons = None, _find_reasons(self._trt, self._runtime, plan)
        if reasons is None:
            engine, reasons = self._runtime.deserialize_cuda_engine(plan), []
        if engine is None:
            raise ModelFileError(
                where=self._file.path,
                found=f"an engine that {self._library} refuses{self._reasons(reasons)}",
                expected="an engine of this version, for this GPU",
                next_step="build the engine again",
            )
        return engine

    def read_profile(self) -> list[int]:
        """Minimum, optimum and maximum batch size of the engine's optimisation profile."""
        return [shape[0] for shape in self.engine.get_tensor_profile_shape("images", 0)]

    def open_context(self, scratch: int) -> Any:
        """An execution context.

        Args:
            scratch: address of `scratch_bytes` of device memory that no other context uses at the
                same time; 0 for RTX, which allocates its own.

        Raises:
            RuntimeFailure: the library cannot create a context.
        """
        if self.flavour == "rtx":
            config = self.engine.create_runtime_config()
            if config is None:
                raise self.fail("no runtime configuration")
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self.engine.create_execution_context(config)
        else:
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self.engine.create_execution_context(strategy)
        if context is None:
            raise self.fail("no execution context, possibly for lack of memory")
        if self.flavour == "rtx":
            return context
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(scratch, self.scratch_bytes)
        else:
            context.device_memory = scratch  # 10.0
        return context

    def fail(self, found: str) -> RuntimeFailure:
        """The error of a failed call, with the library's messages since the last one."""
        return RuntimeFailure(
            where=self._file.path,
            found=found + self._reasons([]),
            expected="an engine that runs on this GPU",
            next_step="free the GPU's memory, or build the engine again for smaller batches",
        )

    def _reasons(self, reasons: list[str]) -> str:
        text = ", ".join([*reasons, *self._listener.take()])[:_MAX_MESSAGE]
        return f" ({text or 'no message'})"


def _make_listener(trt: Any) -> Any:
    class Listener(trt.ILogger):  # type: ignore[misc]
        """Collects the library's error messages instead of printing them."""

        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.lines.append(" ".join(text.split()))

        def take(self) -> list[str]:
            lines, self.lines = self.lines, []
            return lines

    return Listener()


def _find_reasons(trt: Any, runtime: Any, plan: bytes) -> list[str] | None:
    """The reasons, from the plan's header, why it cannot run here; None if it may run.

    Only RTX checks the header. TensorRT must read the whole plan.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return None
    validity, bits = runtime.get_engine_validity(plan)
    if validity != trt.EngineValidity.INVALID:
        return None
    known = trt.EngineInvalidityDiagnostics.__members__
    return [name for name, bit in known.items() if int(bits) & int(bit)]


def read_slots(trt: Any, engine: Any) -> tuple[dict[str, Slot], dict[str, Slot]]:
    """An engine's inputs and outputs: name -> dtype and shape without the batch axis."""
    dtypes = {trt.DataType.UINT8: "uint8", trt.DataType.FLOAT: "float32"}
    inputs: dict[str, Slot] = {}
    outputs: dict[str, Slot] = {}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        dtype = engine.get_tensor_dtype(name)
        shape = [size if size >= 0 else None for size in tuple(engine.get_tensor_shape(name))[1:]]
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs)[name] = (dtypes.get(dtype, str(dtype)), shape)
    return inputs, outputs
