"""TensorRT and TensorRT-RTX engines, through NVIDIA's own bindings and without torch.

Source: TensorRT documentation, "Inference with the Python API" (10, 11 and RTX share these names);
TensorRT-RTX documentation, "CUDA graphs".
"""

from __future__ import annotations

import importlib
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.backends.base import USUAL_BATCH, Outputs
from fedapt_runtime.backends.border import Slot, check_signature, probe
from fedapt_runtime.backends.cuda import Gpu
from fedapt_runtime.backends.engine_file import EngineFile, read_engine_file
from fedapt_runtime.backends.lanes import Lanes
from fedapt_runtime.errors import MissingDependency, ModelFileError, RuntimeFailure

MODULES = {"rtx": "tensorrt_rtx_bindings", "tensorrt": "tensorrt"}
_LANES = 2
_MOST_GRAPHS = 8  # of each lane: the usual size of batch and some others


def import_library(flavour: str) -> Any:
    """Return the module of a flavour of TensorRT.

    Raises:
        MissingDependency: it is not installed.
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


class TensorRtBackend:
    """An engine on the first NVIDIA GPU.

    Batches above the engine's largest are cut; two sets of pinned buffers, each with a stream of
    its own, let copies and computation overlap. A CUDA graph is kept for each size of batch.

    Args:
        path: the .engine file; its .engine.json stands beside it.
        head: must be None: an engine's head is fixed.

    Raises:
        ModelFileError: no engine, not its sidecar, or an engine that this library cannot read.
        MissingDependency: TensorRT or cuda-bindings is not installed.
        RuntimeFailure: no GPU, or one that the engine was not built for.
    """

    def __init__(self, path: str | Path, head: str | Path | None = None) -> None:
        engine_file = read_engine_file(Path(path))
        self.manifest = engine_file.manifest
        if head is not None:
            raise RuntimeFailure(
                where=path,
                found="a head for an engine",
                expected="an engine alone: its head is built in",
                next_step="put the head into model.onnx (fedapt swap-head) and build the engine"
                " again, which takes seconds; or run model.onnx",
            )
        trt = import_library(engine_file.flavour)
        engine_file.check_version(trt.__version__)
        gpu = Gpu()
        engine_file.check_gpu(gpu.capability, gpu.name)
        engine = load_engine(trt, engine_file)
        inputs, outputs = read_slots(trt, engine)
        check_signature(inputs, outputs, self.manifest, path)
        widths = [int(engine.get_tensor_shape(name)[-1]) for name in Outputs._fields]
        lanes = [_EngineLane(trt, gpu, engine, engine_file, widths) for _ in range(_LANES)]
        self._lanes = Lanes(lanes, engine_file.least_batch, engine_file.most_batch)
        self.in_flight, self.usual_batch = _LANES, min(USUAL_BATCH, engine_file.most_batch)
        self.description = f"{engine_file.library} {trt.__version__} on {gpu.name}"
        probe(self, path)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """See `base.Backend.run`."""
        return self._lanes.run(images)


def load_engine(trt: Any, engine_file: EngineFile) -> Any:
    """Read a plan.

    Raises:
        ModelFileError: with what the library says of it.
    """

    class Listener(trt.ILogger):  # type: ignore[misc]
        """Keeps the library's errors, which it would print."""

        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.lines.append(" ".join(text.split()))

    listener = Listener()
    runtime = trt.Runtime(listener)
    plan = engine_file.path.read_bytes()
    engine, reasons = None, _find_reasons(trt, runtime, plan)
    if reasons is None:
        engine, reasons = runtime.deserialize_cuda_engine(plan), []
    if engine is None:
        said = ", ".join([*reasons, *listener.lines])[:300] or "without a word"
        raise ModelFileError(
            where=engine_file.path,
            found=f"an engine that {engine_file.library} {trt.__version__} refuses ({said})",
            expected="an engine of this version, for this GPU",
            next_step="build the engine again",
        )
    return _Kept(engine, runtime, listener)


def _find_reasons(trt: Any, runtime: Any, plan: bytes) -> list[str] | None:
    """Why the plan's header says that it cannot run here; None where it says nothing of the kind.

    Only RTX can tell: TensorRT has to read the whole plan.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return None
    validity, bits = runtime.get_engine_validity(plan)
    if validity != trt.EngineValidity.INVALID:
        return None
    known = trt.EngineInvalidityDiagnostics.__members__
    return [name for name, bit in known.items() if int(bits) & int(bit)]


class _Kept:
    """An engine, with what must live as long as it does."""

    def __init__(self, engine: Any, *kept: Any) -> None:
        self._engine, self._kept = engine, kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def read_slots(trt: Any, engine: Any) -> tuple[dict[str, Slot], dict[str, Slot]]:
    """Names, dtypes and shapes of an engine's inputs and outputs, without the batch axis."""
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


def buffer_sizes(engine_file: EngineFile, widths: list[int]) -> tuple[int, list[int]]:
    """Bytes of one image, and of one row of each output.

    Args:
        widths: numbers of columns of the outputs, all float32.
    """
    height, width = engine_file.manifest.preprocessing.size
    return height * width * 3, [4 * columns for columns in widths]


class _EngineLane:
    """Buffers, a stream and an execution context; see `lanes.Lane`."""

    def __init__(
        self, trt: Any, gpu: Gpu, engine: Any, engine_file: EngineFile, widths: list[int]
    ) -> None:
        self._gpu, self._engine, self._widths = gpu, engine, widths
        self._image_bytes, self._row_bytes = buffer_sizes(engine_file, widths)
        # RTX compiles kernels for new shapes by and by, and so keeps graphs by itself
        self._captures = engine_file.flavour == "tensorrt"
        if self._captures:
            self._context = engine.create_execution_context()
        else:
            config = engine.create_runtime_config()
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._context = engine.create_execution_context(config)
        if self._context is None:
            raise _failed(engine_file.path, "no execution context, perhaps for want of memory")
        self._path, self._batch = engine_file.path, 0
        self._stream = gpu.open_stream()
        most = engine_file.most_batch
        sizes = [most * n for n in (self._image_bytes, *self._row_bytes)]
        self._device = [gpu.allocate(n) for n in sizes]
        self._pinned = [gpu.allocate_pinned(n) for n in sizes]
        for name, address in zip(("images", *Outputs._fields), self._device, strict=True):
            self._context.set_tensor_address(name, address)
        self._graphs: dict[int, Any] = {}
        self._kept: list[Any] = []  # the graphs again, for the finalizer
        self._warm: set[int] = set()
        weakref.finalize(self, gpu.free, self._stream, self._device, self._pinned, self._kept)

    def start(self, images: NDArray[np.uint8]) -> None:
        """See `lanes.Lane.start`."""
        batch, flat = len(images), images.reshape(-1)
        self._pinned[0][: flat.size] = flat
        if batch in self._graphs:
            self._gpu.launch(self._graphs[batch], self._stream)
        elif self._captures and batch in self._warm and len(self._graphs) < _MOST_GRAPHS:
            self._gpu.begin_capture(self._stream)
            self._put(batch)
            self._graphs[batch] = self._gpu.end_capture(self._stream)
            self._kept.append(self._graphs[batch])
            self._gpu.launch(self._graphs[batch], self._stream)
        else:  # the first run of a size allocates, which no graph can hold
            self._put(batch)
            self._warm.add(batch)
        self._batch = batch

    def _put(self, batch: int) -> None:
        """Copy in, compute, copy out: into the stream, or into the graph that it records."""
        n_bytes = batch * self._image_bytes
        shape = (batch, *tuple(self._engine.get_tensor_shape("images"))[1:])
        self._context.set_input_shape("images", shape)
        self._gpu.copy_in(self._device[0], self._pinned[0], n_bytes, self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise _failed(self._path, f"an engine that does not run a batch of {batch}")
        outputs = zip(self._pinned[1:], self._device[1:], self._row_bytes, strict=True)
        for host, device, row in outputs:
            self._gpu.copy_out(host, device, batch * row, self._stream)

    def finish(self) -> Outputs:
        """See `lanes.Lane.finish`."""
        self._gpu.wait(self._stream)
        columns = zip(self._pinned[1:], self._widths, strict=True)
        return Outputs(
            *(
                host[: 4 * self._batch * width].view(np.float32).reshape(-1, width).copy()
                for host, width in columns
            )
        )


def _failed(path: Path, found: str) -> RuntimeFailure:
    return RuntimeFailure(
        where=path,
        found=found,
        expected="an engine that runs on this GPU",
        next_step="free the GPU's memory, or build the engine again for smaller batches",
    )
