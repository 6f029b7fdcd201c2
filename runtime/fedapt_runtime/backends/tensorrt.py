"""TensorRT and TensorRT-RTX engines through NVIDIA's bindings, without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.backends.base import DEFAULT_BATCH, Outputs
from fedapt_runtime.backends.cuda import Gpu
from fedapt_runtime.backends.engine_file import EngineFile, read_engine_file
from fedapt_runtime.backends.engine_plan import EnginePlan, import_library
from fedapt_runtime.backends.engine_stream import EngineStream
from fedapt_runtime.backends.model_checks import probe
from fedapt_runtime.backends.streams import StreamPool
from fedapt_runtime.errors import RuntimeFailure

_STREAMS = 2


class TensorRtBackend:
    """A TensorRT engine on the first GPU that CUDA_VISIBLE_DEVICES names.

    Batches above the engine's maximum are cut. Two streams with their own buffers let copies and
    computation overlap. Repeated batch sizes run as CUDA graphs, up to a maximum number.

    Args:
        engine: the .engine file with its .engine.json beside it, or the description itself.
        head: must be None, because an engine's head is fixed.

    Raises:
        ModelFileError: the engine or its description is missing or damaged, or this library cannot
            read the engine.
        MissingDependency: TensorRT or cuda-bindings is not installed.
        RuntimeFailure: a head, no GPU, or a GPU that the engine was not built for.
    """

    def __init__(self, engine: str | Path | EngineFile, head: str | Path | None = None) -> None:
        self.name, self.compute = "tensorrt", "fp32"
        engine_file = engine if isinstance(engine, EngineFile) else read_engine_file(Path(engine))
        self.manifest = engine_file.manifest
        if head is not None:
            raise RuntimeFailure(
                where=engine_file.path,
                found="a head for a TensorRT engine",
                expected="the engine without a head file: its head is built in",
                next_step="put the head into model.onnx (fedapt swap-head) and build the engine"
                " again, which takes seconds; or run model.onnx",
            )
        trt = import_library(engine_file.flavour)
        engine_file.check_version(trt.__version__)
        gpu = Gpu()
        engine_file.check_gpu(gpu.capability, gpu.name)
        with gpu.current():
            plan = EnginePlan(trt, engine_file)
        streams = [EngineStream(gpu, plan) for _ in range(_STREAMS)]
        self._streams = StreamPool(streams, plan.min_batch, plan.max_batch)
        self.in_flight, self.default_batch = _STREAMS, min(DEFAULT_BATCH, plan.max_batch)
        self.task_size = 0
        self.description = f"{engine_file.library} {trt.__version__} on {gpu.name}"
        probe(self, engine_file.path)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """See `base.Backend.run`."""
        return self._streams.run(images)
