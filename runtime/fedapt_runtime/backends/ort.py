"""ONNX Runtime: on the CPU, on a CUDA GPU, or through its own TensorRT provider."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.backends.cpu_plan import plan_cpu_work
from fedapt_runtime.backends.model_checks import (
    Slot,
    check_model_file,
    check_signature,
    describe_int8,
    probe,
)
from fedapt_runtime.backends.ort_cuda import (
    DEFAULT_BATCH,
    STREAMS,
    ComputeStream,
    open_compute_stream,
    open_streams,
)
from fedapt_runtime.backends.streams import StreamPool
from fedapt_runtime.errors import MissingDependency, ModelFileError, RuntimeFailure, first_line
from fedapt_runtime.head import HeadFile, Tensor, read_head
from fedapt_runtime.manifest import METADATA_KEY, parse_manifest
from fedapt_runtime.onnx_file import check_content, check_one_file

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt-ep": "TensorrtExecutionProvider",
}
# float32 means float32; cuDNN may not try every algorithm for minutes at each new size of batch
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
_FATAL = 4  # of ONNX Runtime's levels
_NEXT_STEPS = {
    "cpu": "report this with the model",
    "cuda": "check the driver, pip install 'onnxruntime-gpu[cuda,cudnn]', or choose device cpu",
    "tensorrt-ep": "pip install 'tensorrt<11', whose libnvinfer.so.10 this provider loads,"
    " or choose device cuda",
}
_VARIANTS = ("onnxruntime", "onnxruntime-gpu")


def import_onnxruntime() -> Any:
    """Return the module `onnxruntime`, after a check that only one variant is installed.

    onnxruntime and onnxruntime-gpu write the same files: with both in one folder, which one works
    depends on the order of installation, so both is refused rather than guessed. In two folders,
    the first on the path counts, as with every package.

    Raises:
        MissingDependency: none is installed, or both are, in one folder.
    """
    folders = [folder for name in _VARIANTS if (folder := _find_folder(name)) is not None]
    if len(folders) > len(set(folders)):
        raise MissingDependency(
            where="onnxruntime",
            found="both onnxruntime and onnxruntime-gpu, which overwrite each other's files",
            expected="one of them",
            next_step="pip uninstall -y onnxruntime onnxruntime-gpu, then "
            "pip install 'fedapt-runtime[cpu]' or 'fedapt-runtime[gpu]'",
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(
            where="onnxruntime",
            found=f"no usable ONNX Runtime ({error})",
            expected="onnxruntime or onnxruntime-gpu",
            next_step="pip install 'fedapt-runtime[cpu]' (or [gpu] where there is an NVIDIA GPU)",
        ) from error
    return onnxruntime


def _find_folder(name: str) -> str | None:
    try:
        return str(distribution(name).locate_file(""))
    except PackageNotFoundError:
        return None


def check_device(device: str, available: list[str]) -> None:
    """Refuse a device that this ONNX Runtime does not have.

    Args:
        device: a key of `PROVIDERS`.
        available: the providers that ONNX Runtime names.

    Raises:
        RuntimeFailure: an unknown device, or one that this ONNX Runtime lacks.
    """
    if PROVIDERS.get(device) in available:
        return
    have = [name for name, provider in PROVIDERS.items() if provider in available]
    raise RuntimeFailure(
        where="device",
        found=repr(device),
        expected=f"auto, {' or '.join(have)} with the ONNX Runtime that is installed",
        next_step="choose one of these, or install 'fedapt-runtime[gpu]' in an environment"
        " without onnxruntime for CUDA and TensorRT",
    )


def open_session(
    onnxruntime: Any,
    model: str | bytes,
    device: str,
    where: object,
    threads: int = 0,
    cuda: Mapping[str, str] | None = None,
) -> Any:
    """An InferenceSession on one device, without a silent fallback.

    Args:
        model: path or serialised model.
        device: `cpu`, `cuda`, or `tensorrt-ep`: TensorRT, with CUDA for what it does not know.
        where: name of the model in messages.
        threads: threads of one operator on the CPU; 0 takes every core.
        cuda: further options of the CUDA provider.

    Raises:
        ModelFileError: ONNX Runtime cannot read the model.
        RuntimeFailure: the device was asked for and did not start.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # threads that wait for work by spinning take the processor from those that decode
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = [PROVIDERS[device]]
    if device != "cpu":
        _load_cuda_libraries(onnxruntime)
        on_cuda = (PROVIDERS["cuda"], {**CUDA_OPTIONS, **(cuda or {})})
        providers = [on_cuda] if device == "cuda" else [*providers, on_cuda]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise ModelFileError(
            where=where,
            found=f"a file that ONNX Runtime cannot load ({first_line(error)})",
            expected="a model written by `fedapt export`",
            next_step="check the path, or export the model again",
        ) from error
    if PROVIDERS[device] not in session.get_providers():
        raise RuntimeFailure(
            where=f"device {device}",
            found=f"ONNX Runtime running on {', '.join(session.get_providers())}",
            expected=PROVIDERS[device],
            next_step=_NEXT_STEPS[device],
        )
    return session


def _load_cuda_libraries(onnxruntime: Any) -> None:
    """Load CUDA and cuDNN from NVIDIA's packages instead of the system."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        onnxruntime.preload_dlls()
    # a line for each algorithm that cuDNN passes over; what fails in the end is raised
    onnxruntime.set_default_logger_severity(_FATAL)


class OrtBackend:
    """A fused model in ONNX Runtime.

    Args:
        path: the .onnx file.
        device: `cpu`, `cuda` or `tensorrt-ep`; `auto` takes CUDA where it starts, else the CPU.
        head: a head file to use in place of the model's own head.
        threads: threads of inference on the CPU; 0 takes every core.
        throughput: on the CPU, the most images per second rather than the shortest time of one
            batch.

    Raises:
        ModelFileError: no such file, not ONNX, not a fedapt model, or a head of another CLIP.
        MissingDependency: ONNX Runtime is missing or installed twice.
        RuntimeFailure: the device is not available.
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "auto",
        head: str | Path | None = None,
        threads: int = 0,
        throughput: bool = False,
    ) -> None:
        path = Path(path)
        check_model_file(path)
        check_one_file(path)
        onnxruntime = import_onnxruntime()
        plan = plan_cpu_work(threads, throughput)
        opened = _open_on(onnxruntime, path, device, plan.threads)
        self._session = opened.session
        self.name = "tensorrt-ep" if opened.device == "tensorrt-ep" else "onnxruntime"
        self.compute = "fp32"
        self.in_flight, self.default_batch = plan.in_flight, plan.default_batch
        if opened.device != "cpu":
            self.in_flight, self.default_batch = STREAMS, DEFAULT_BATCH
        self._own_manifest = self.manifest = parse_manifest(
            self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), path
        )
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
        check_content(path, METADATA_KEY)

    def with_head(self, head: HeadFile, where: object) -> Self:
        """See `base.SwappableBackend.with_head`."""
        if self._streams is not None:  # their CUDA graphs hold the head that they were built with
            raise RuntimeFailure(
                where=where,
                found="a model that runs on a GPU",
                expected="one on a CPU, whose head can be swapped while it runs",
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
    """A session, the device that it is on, how that came where it was not asked for, its stream."""

    session: Any
    device: str
    why: str = ""
    compute: ComputeStream | None = None


def _open_on(onnxruntime: Any, path: Path, device: str, threads: int) -> _Opened:
    available = onnxruntime.get_available_providers()
    if device != "auto":
        check_device(device, available)
        if device == "cuda":
            return _open_on_cuda(onnxruntime, path)
        return _Opened(open_session(onnxruntime, str(path), device, path, threads), device)
    why = "no CUDA provider"
    if PROVIDERS["cuda"] in available:
        try:
            return _open_on_cuda(onnxruntime, path, " (auto: CUDA is there)")
        except MissingDependency as error:
            why = f"CUDA is there, {error.where} is not"
        except RuntimeFailure:  # of a damaged model too: then the CPU says so as well
            why = "CUDA did not start"
    session = open_session(onnxruntime, str(path), "cpu", path, threads)
    return _Opened(session, "cpu", f" (auto: {why})")


def _open_on_cuda(onnxruntime: Any, path: Path, why: str = "") -> _Opened:
    """Open with CUDA graphs; without them, and with a note, if a part runs on the CPU."""
    compute = open_compute_stream()
    try:
        session = open_session(
            onnxruntime, str(path), "cuda", path, cuda=compute.options(graphs=True)
        )
    except ModelFileError:
        options = compute.options(graphs=False)
        session = open_session(onnxruntime, str(path), "cuda", path, cuda=options)
        why += ", without CUDA graphs"
    return _Opened(session, "cuda", why, compute)


def _slots(nodes: Any) -> dict[str, Slot]:
    dtypes = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
    return {
        node.name: (
            dtypes.get(node.type, node.type),
            [size if isinstance(size, int) else None for size in node.shape[1:]],
        )
        for node in nodes
    }
