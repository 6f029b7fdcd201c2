"""ONNX Runtime's sessions: on the CPU, on a CUDA GPU, or through its own TensorRT provider."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from fedapt_runtime.errors import MissingDependency, ModelFileError, RuntimeFailure, first_line

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt-ep": "TensorrtExecutionProvider",
}
# products and sums of float32 stay in float32; an exhaustive search of cuDNN takes minutes for each
# new batch size
CUDA_OPTIONS = {
    "use_tf32": "0",
    "cudnn_conv_algo_search": "HEURISTIC",
    "enable_skip_layer_norm_strict_mode": "1",
}
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_ERROR, _FATAL = 3, 4  # of ONNX Runtime's levels
_NEXT_STEPS = {
    "cpu": "report this with the model",
    "cuda": "check the driver, pip install 'onnxruntime-gpu[cuda,cudnn]', or choose device cpu",
    "tensorrt-ep": "pip install 'tensorrt<11', whose libnvinfer.so.10 this provider loads,"
    " or choose device cuda",
}
_VARIANTS = ("onnxruntime", "onnxruntime-gpu")


def layout_options(precision: str, operators: Collection[str]) -> dict[str, str]:
    """Options of the CUDA provider: float16 convolutions are faster with the channels last."""
    return {"prefer_nhwc": "1"} if precision == "fp16" and "Conv" in operators else {}


def import_onnxruntime() -> Any:
    """Return the module `onnxruntime`, after a check that only one variant is installed.

    onnxruntime and onnxruntime-gpu write the same files. If both are in one folder, the order of
    installation decides which one works; this is refused. In two folders, the first on the path
    counts, as for every package.

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
        expected=f"auto, {' or '.join(have)} with the installed ONNX Runtime",
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
    weights: Path | None = None,
) -> Any:
    """An InferenceSession on one device, without a silent fallback.

    Args:
        model: path or serialised model.
        device: `cpu`, `cuda`, or `tensorrt-ep`: TensorRT, with CUDA for what it does not know.
        where: name of the model in messages.
        threads: threads of one operator on the CPU; 0 takes every core.
        cuda: further options of the CUDA provider.
        weights: for a serialised model, the folder of the files that hold its weights; for a path,
            it is the model's own.

    Raises:
        ModelFileError: ONNX Runtime cannot read the model.
        RuntimeFailure: the requested device did not start.
    """
    options = onnxruntime.SessionOptions()
    # errors of CUDA are raised too; a model whose CUDA graph cannot be recorded is opened again
    options.log_severity_level = _ERROR if device == "cpu" else _FATAL
    options.intra_op_num_threads = threads
    # threads that spin while they wait take time from the threads that decode
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if weights is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(weights))
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
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the libraries that it does not find
        onnxruntime.preload_dlls()
    # cuDNN logs a line for each algorithm that it rejects; a failure is raised
    onnxruntime.set_default_logger_severity(_FATAL)
