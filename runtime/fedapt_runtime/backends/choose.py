"""Which backend runs a model: the one that is asked for, or the first that fits the file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fedapt_runtime.backends.base import Backend
from fedapt_runtime.errors import RuntimeFailure

BACKENDS = ("onnxruntime", "openvino", "tensorrt-ep", "tensorrt")
DEVICES = ("cpu", "cuda")
PERFORMANCE_HINTS = ("latency", "throughput")
ENGINE_SUFFIX = ".engine"
_DEVICES_OF = {
    "onnxruntime": DEVICES,
    "openvino": ("cpu",),
    "tensorrt-ep": ("cuda",),
    "tensorrt": ("cuda",),
}


def load_backend(
    path: str | Path,
    backend: str = "auto",
    device: str = "auto",
    head: str | Path | None = None,
    threads: int = 0,
    performance_hint: str = "latency",
) -> Backend:
    """Load a model into a backend; only that backend's library is imported.

    Args:
        path: an .onnx or .engine file.
        backend: one of `BACKENDS`; `auto` takes TensorRT for an engine, else ONNX Runtime, or
            OpenVINO where that alone is installed.
        device: `cpu` or `cuda`; `auto` takes what the backend has.
        head: a head file to use in place of the model's own head.
        threads: threads of inference on a CPU; 0 takes every core.
        performance_hint: one of `PERFORMANCE_HINTS`, see `Classifier.load`.

    Raises:
        RuntimeFailure: an unknown backend or hint, or a backend that has no such device or reads no
            such file; else see `Classifier.load`.
    """
    path = Path(path)
    is_engine = path.suffix == ENGINE_SUFFIX
    why = ""
    if backend == "auto":
        backend, why = _choose(is_engine)
    _check_choice(path, is_engine, backend, device)
    if performance_hint not in PERFORMANCE_HINTS:
        raise RuntimeFailure(
            where="performance_hint",
            found=repr(performance_hint),
            expected=" or ".join(PERFORMANCE_HINTS),
            next_step="choose one of these",
        )
    loaded = _load(path, backend, device, head, threads, performance_hint == "throughput")
    loaded.description += why
    return loaded


def _choose(is_engine: bool) -> tuple[str, str]:
    """A backend, and the reason where it is not the usual one."""
    if is_engine:
        return "tensorrt", " (auto: an engine)"
    if find_spec("onnxruntime") is None and find_spec("openvino") is not None:
        return "openvino", " (auto: no ONNX Runtime)"
    return "onnxruntime", ""  # it gives its own reason, which is the device


def _check_choice(path: Path, is_engine: bool, backend: str, device: str) -> None:
    if backend not in BACKENDS:
        raise RuntimeFailure(
            where="backend",
            found=repr(backend),
            expected=f"auto or one of {', '.join(BACKENDS)}",
            next_step="choose one of these",
        )
    if is_engine != (backend == "tensorrt"):
        raise RuntimeFailure(
            where=path,
            found=f"{'an engine' if is_engine else 'no engine'} for the backend {backend}",
            expected="an .engine file for tensorrt, an .onnx file for the others",
            next_step="leave --backend out, or give the other file",
        )
    if device not in ("auto", *_DEVICES_OF[backend]):
        raise RuntimeFailure(
            where="device",
            found=f"{device!r} for the backend {backend}",
            expected=f"auto or {' or '.join(_DEVICES_OF[backend])}",
            next_step="choose one of these, or another backend",
        )


def _load(
    path: Path,
    backend: str,
    device: str,
    head: str | Path | None,
    threads: int,
    throughput: bool,
) -> Backend:
    if backend == "openvino":
        from fedapt_runtime.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(path, head, threads, throughput)
    if backend == "tensorrt":
        from fedapt_runtime.backends.tensorrt import TensorRtBackend

        return TensorRtBackend(path, head)
    from fedapt_runtime.backends.ort import OrtBackend

    device = "tensorrt-ep" if backend == "tensorrt-ep" else device
    return OrtBackend(path, device, head, threads, throughput)
