"""The backend on ONNX Runtime."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.backends.cpu_plan import TASK_SIZE, plan_cpu_work
from fedapt_runtime.backends.model_checks import (
    Slot,
    check_model_file,
    check_signature,
    describe_int8,
    probe,
)
from fedapt_runtime.backends.ort import (
    PROVIDERS,
    check_device,
    import_onnxruntime,
    layout_options,
    open_session,
)
from fedapt_runtime.backends.ort_cuda import (
    DEFAULT_BATCH,
    STREAMS,
    ComputeStream,
    open_compute_stream,
    open_streams,
)
from fedapt_runtime.backends.streams import StreamPool
from fedapt_runtime.errors import MissingDependency, ModelFileError, RuntimeFailure
from fedapt_runtime.head import HeadFile, Tensor, read_head
from fedapt_runtime.manifest import METADATA_KEY, parse_manifest
from fedapt_runtime.onnx_file import check_content, open_onnx
from fedapt_runtime.options import LOAD_DEFAULTS, LoadOptions


class OrtBackend:
    """A fused model in ONNX Runtime.

    Args:
        path: the .onnx file.
        options: `device`, where `auto` takes CUDA if it starts, else the CPU; `backend`, of which
            `tensorrt-ep` takes the TensorRT provider; `head`, `threads` and `performance_hint`.

    Raises:
        ModelFileError: no such file, not ONNX, not a fedapt model, or a head of another CLIP.
        MissingDependency: ONNX Runtime is missing or installed twice.
        RuntimeFailure: the device is not available.
    """

    def __init__(self, path: str | Path, options: LoadOptions = LOAD_DEFAULTS) -> None:
        path, head = Path(path), options.head
        device = "tensorrt-ep" if options.backend == "tensorrt-ep" else options.device
        check_model_file(path)
        content = open_onnx(path)
        self._own_manifest = parse_manifest(content.metadata.get(METADATA_KEY), path)
        self.manifest = self._own_manifest
        onnxruntime = import_onnxruntime()
        plan = plan_cpu_work(options.threads, options.throughput)
        layout = layout_options(self.manifest.precision, content.operators)
        opened = _open_on(onnxruntime, path, device, plan.threads, layout)
        self._session = opened.session
        self.name = "tensorrt-ep" if opened.device == "tensorrt-ep" else "onnxruntime"
        self.compute = "fp32"
        self.in_flight, self.default_batch = plan.in_flight, plan.default_batch
        self.task_size = TASK_SIZE if options.throughput else 0
        if opened.device != "cpu":
            self.in_flight, self.default_batch, self.task_size = STREAMS, DEFAULT_BATCH, 0
        warning = describe_int8(self.manifest) if opened.device == "cpu" else ""
        on = f"on {opened.device}{warning}{opened.why}"
        self.description = f"ONNX Runtime {onnxruntime.__version__} {on}"
        inputs, outputs = _slots(self._session.get_inputs()), _slots(self._session.get_outputs())
        check_signature(inputs, outputs, self.manifest, path)
        self._head: dict[str, Tensor] = {}
        if head is not None:
            self._put_head(read_head(head), head)
        self._streams: StreamPool | None = None
        if opened.compute is not None:
            shape = (*self.manifest.preprocessing.size, 3)
            self._streams = open_streams(
                onnxruntime, self._session, opened.compute, self._head, shape, path
            )
        probe(self, path if head is None else head)
        check_content(path, content)

    def with_head(self, head: HeadFile, where: object) -> Self:
        """See `base.SwappableBackend.with_head`."""
        if self._streams is not None:  # their CUDA graphs hold the head that they were built with
            raise RuntimeFailure(
                where=where,
                found="a model that runs on a GPU",
                expected="a model on a CPU, where the head can be swapped at run time",
                next_step="load the model again with this head",
            )
        other = copy.copy(self)
        other._put_head(head, where)
        probe(other, where)
        return other

    def _put_head(self, head: HeadFile, where: object) -> None:
        head.check_fits(self._own_manifest, where)
        self.manifest = head.manifest_on(self._own_manifest)
        self._head = head.feeds()

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """See `base.Backend.run`."""
        if self._streams is not None:
            return self._streams.run(images)
        return Outputs(*self._session.run(Outputs._fields, {"images": images, **self._head}))


class _Opened(NamedTuple):
    """A session, its device, a note if the device was chosen automatically, and its stream."""

    session: Any
    device: str
    why: str = ""
    compute: ComputeStream | None = None


def _open_on(
    onnxruntime: Any, path: Path, device: str, threads: int, layout: dict[str, str]
) -> _Opened:
    available = onnxruntime.get_available_providers()
    if device != "auto":
        check_device(device, available)
        if device == "cuda":
            return _open_on_cuda(onnxruntime, path, layout)
        return _Opened(open_session(onnxruntime, str(path), device, path, threads), device)
    why = "no CUDA provider"
    if PROVIDERS["cuda"] in available:
        try:
            return _open_on_cuda(onnxruntime, path, layout, " (auto: CUDA is there)")
        except MissingDependency as error:
            why = f"CUDA is there, {error.where} is not"
        except RuntimeFailure:  # of a damaged model too: then the CPU says so as well
            why = "CUDA did not start"
    session = open_session(onnxruntime, str(path), "cpu", path, threads)
    return _Opened(session, "cpu", f" (auto: {why})")


def _open_on_cuda(onnxruntime: Any, path: Path, layout: dict[str, str], why: str = "") -> _Opened:
    """Open with CUDA graphs; without them, and with a note, if a part runs on the CPU."""
    compute = open_compute_stream()
    graphs = compute.options(graphs=True)
    # CUDA graphs gain more than the layout, with which ONNX Runtime puts some nodes on the CPU
    for options in (graphs | layout, graphs) if layout else (graphs,):
        with contextlib.suppress(ModelFileError):
            session = open_session(onnxruntime, str(path), "cuda", path, cuda=options)
            return _Opened(session, "cuda", why, compute)
    options = compute.options(graphs=False) | layout
    session = open_session(onnxruntime, str(path), "cuda", path, cuda=options)
    return _Opened(session, "cuda", f"{why}, without CUDA graphs", compute)


def _slots(nodes: Any) -> dict[str, Slot]:
    dtypes = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
    return {
        node.name: (
            dtypes.get(node.type, node.type),
            [size if isinstance(size, int) else None for size in node.shape[1:]],
        )
        for node in nodes
    }
