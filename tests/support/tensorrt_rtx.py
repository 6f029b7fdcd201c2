"""What TensorRT-RTX has beside the names of TensorRT: it keeps CUDA graphs by itself."""

from __future__ import annotations

import enum
from typing import Any

from tests.support import tensorrt_library
from tests.support.tensorrt_library import ExecutionContextAllocationStrategy, IExecutionContext


class CudaGraphStrategy(enum.IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class EngineValidity(enum.IntEnum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(enum.IntFlag):
    VERSION_MISMATCH = 1
    MALFORMED_ENGINE = 32


class IRuntimeConfig:
    cuda_graph_strategy = CudaGraphStrategy.DISABLED


class ICudaEngine(tensorrt_library.ICudaEngine):
    def create_runtime_config(self) -> IRuntimeConfig | None:
        return None if "config" in self.plan.fails else IRuntimeConfig()

    def create_execution_context(  # type: ignore[override]
        self, runtime_config: IRuntimeConfig
    ) -> IExecutionContext | None:
        strategy = runtime_config.cuda_graph_strategy
        assert strategy == CudaGraphStrategy.WHOLE_GRAPH_CAPTURE, "no CUDA graphs"
        return super().create_execution_context(ExecutionContextAllocationStrategy.STATIC)


class Runtime(tensorrt_library.Runtime):
    engine_type = ICudaEngine

    def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
        if buffer.startswith(b"{"):
            return EngineValidity.VALID, 0
        return EngineValidity.INVALID, int(EngineInvalidityDiagnostics.MALFORMED_ENGINE)


class Library(tensorrt_library.Library):
    """`Library(machine)` stands in for `import tensorrt_rtx_bindings`."""

    runtime_type = Runtime
    CudaGraphStrategy = CudaGraphStrategy
    EngineValidity = EngineValidity
    EngineInvalidityDiagnostics = EngineInvalidityDiagnostics


def rtx_description() -> dict[str, Any]:
    """What differs in the description of such an engine."""
    return {"flavour": "rtx", "library": {"name": "tensorrt-rtx", "version": "1.7.1"}}
