"""The backend of engines on a real GPU without TensorRT: a stand-in engine computes with torch.

Streams, pinned memory, copies, stream capture and graphs are CUDA's own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedapt_runtime.backends.tensorrt import TensorRtBackend
from tests.support.fake_engine import CHECKS, load, write_engine
from tests.support.tensorrt_library import OUTPUTS, IExecutionContext, Library

runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


class TorchMachine:
    """Engines that compute with torch, in the streams and the memory that they are given."""

    def __init__(self) -> None:
        self._streams: set[int] = set()
        self._views: dict[tuple[int, int], list[torch.Tensor]] = {}

    def is_recording(self, stream: int) -> bool:
        none = runtime.cudaStreamCaptureStatus.cudaStreamCaptureStatusNone
        return bool(runtime.cudaStreamIsCapturing(stream)[1] != none)

    def is_thread_recording(self) -> bool:
        return False  # the fake CUDA knows

    def count_recordings(self) -> int:
        return sum(map(self.is_recording, self._streams))

    def is_in_graph(self, context: object) -> bool:
        return False

    def is_busy(self, context: object) -> bool:
        return False

    def compute(self, stream: int, context: IExecutionContext, batch: int) -> bool:
        self._streams.add(stream)
        key = (id(context), batch)
        if key not in self._views:
            self._views[key] = self._view(context, batch)
        images, *outputs = self._views[key]
        begin = 0
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            for output in outputs:  # a kernel each, which takes no memory
                output.copy_(images[:, begin : begin + output.shape[1]])
                begin += output.shape[1]
        return True

    def _view(self, context: IExecutionContext, batch: int) -> list[torch.Tensor]:
        plan, addresses = context.engine.plan, context.addresses
        pixels = 1
        for size in plan.image_shape:
            pixels *= size
        widths = zip(OUTPUTS, plan.columns, strict=True)
        return [
            _tensor(addresses["images"], (batch, pixels), "|u1"),
            *(_tensor(addresses[name], (batch, width), "<f4") for name, width in widths),
        ]


class _Memory:
    def __init__(self, interface: dict[str, Any]) -> None:
        self.__cuda_array_interface__ = interface


def _tensor(address: int, shape: tuple[int, int], dtype: str) -> torch.Tensor:
    """Memory on the GPU as a tensor, without a copy."""
    interface = {"shape": shape, "typestr": dtype, "data": (address, False), "version": 3}
    return torch.as_tensor(_Memory(interface), device="cuda")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_an_engine(
    check: Callable[[TensorRtBackend, Library], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = Library(TorchMachine())
    check(load(write_engine(tmp_path), library, monkeypatch), library)
    gc.collect()
    assert [engine.broken for engine in library.engines] == [[]]
    assert all(context() is None for engine in library.engines for context in engine.contexts)
    torch.cuda.synchronize()  # an error of what was given back would be told here
