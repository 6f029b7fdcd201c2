"""Choice of backend and compute precision: as requested, or the fastest on this machine."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from fedapt_runtime.agreement import Agreement, read_agreement
from fedapt_runtime.backends.base import Backend
from fedapt_runtime.backends.engine_file import description_path
from fedapt_runtime.backends.model_checks import read_manifest
from fedapt_runtime.backends.selection import Candidate, select
from fedapt_runtime.errors import RuntimeFailure
from fedapt_runtime.head import read_head
from fedapt_runtime.machine import may_have_bfloat16
from fedapt_runtime.manifest import ONNXRUNTIME, Manifest
from fedapt_runtime.onnx_file import open_onnx
from fedapt_runtime.options import (
    BACKENDS,
    COMPUTE,
    DEVICES,
    LOAD_DEFAULTS,
    PERFORMANCE_HINTS,
    LoadOptions,
)

ENGINE_SUFFIX = ".engine"
SMALL_JOB = 64  # images
BACKEND_VARIABLE, COMPUTE_VARIABLE = "FEDAPT_BACKEND", "FEDAPT_COMPUTE"
_DEVICES_OF = {
    "onnxruntime": DEVICES,
    "openvino": ("cpu",),
    "tensorrt-ep": ("cuda",),
    "tensorrt": ("cuda",),
}


def list_files(path: Path) -> list[Path]:
    """A model's file, and those beside it that belong to it.

    Args:
        path: an .onnx or .engine file.

    Raises:
        ModelFileError: the .onnx file cannot be read, or its weights are missing.
    """
    if path.suffix == ENGINE_SUFFIX:
        return [path, description_path(path)]
    weights = open_onnx(path).weights
    return [path] if weights is None else [path, path.with_name(weights.file)]


def load_backend(path: str | Path, options: LoadOptions = LOAD_DEFAULTS) -> Backend:
    """Load a model into a backend; imports only the libraries of possible backends.

    Args:
        path: an .onnx or .engine file.
        options: how to load it. `auto` for the backend takes TensorRT for a TensorRT engine, ONNX
            Runtime where it has CUDA or the job is small, and else on a CPU the fastest of those
            that are installed, see `selection`. `auto` for the device takes what the backend has.
            `auto` for the compute precision takes `bf16` where it is faster and the export found
            no changed label, see `agreement`.

    The environment variables `FEDAPT_BACKEND` and `FEDAPT_COMPUTE` replace `auto` for `backend` and
    `compute`.

    Raises:
        RuntimeFailure: an unknown backend, compute precision or hint, or a backend that has no such
            device, precision or file; else see `Classifier.load`.
    """
    path, device = Path(path), options.device
    is_engine = path.suffix == ENGINE_SUFFIX
    if options.performance_hint not in PERFORMANCE_HINTS:
        expected = " or ".join(PERFORMANCE_HINTS)
        raise _unknown("performance_hint", options.performance_hint, expected)
    backend, compute = read_environment(options.backend, options.compute, is_engine)
    if is_engine and backend == "auto":
        backend, why = "tensorrt", " (auto: a TensorRT engine)"
    else:
        why = ""
    if backend != "auto":
        _check_choice(path, is_engine, backend, device)
    elif device not in ("auto", *DEVICES):
        raise _unknown("device", device, f"auto or one of {', '.join(DEVICES)}")
    candidates = list_candidates(path, backend, device, compute)
    notes = []
    if backend == "auto" and len(candidates) > 1 and _is_small(options.n_images):
        # OpenVINO starts later than ONNX Runtime, by more than a small job can regain
        candidates, options = candidates[:1], replace(options, device="cpu")
        notes.append(f"fewer than {SMALL_JOB} images")
    if any(candidate.compute == "bf16" for candidate in candidates) and compute == "auto":
        candidates, note = _keep_exact(candidates, _read_manifest(path, options.head))
        notes.append(note)
    if len(candidates) == 1:
        (candidate,) = candidates
        if backend == "auto" and candidate.backend == "openvino":
            has_other = find_spec("onnxruntime") is not None
            notes.insert(0, f"alone has {compute}" if has_other else "no ONNX Runtime")
        loaded = _load(path, candidate, options)
    else:
        on_cpu = replace(options, device="cpu")  # only a CPU has several candidates

        def load(candidate: Candidate) -> Backend:
            return _load(path, candidate, on_cpu)

        determined_by = {"model": _hash_model(path), "threads": options.threads}
        found = select(candidates, load, determined_by, options.performance_hint)
        loaded = load(found.candidate)
        loaded.default_batch = found.batch_size
        when = "as measured before" if found.from_cache else "measured now"
        notes.insert(0, f"the fastest of {len(candidates)} here, {when}")
    loaded.description += why or (f" (auto: {'; '.join(notes)})" if notes else "")
    return loaded


def _is_small(n_images: int | None) -> bool:
    return n_images is not None and n_images < SMALL_JOB


def read_environment(backend: str, compute: str, is_engine: bool = False) -> tuple[str, str]:
    """Backend and compute precision; the environment replaces `auto`.

    Raises:
        RuntimeFailure: an unknown name.
    """
    if backend == "auto" and not is_engine:  # one backend alone runs a TensorRT engine
        backend = _check_name(BACKEND_VARIABLE, os.environ.get(BACKEND_VARIABLE), BACKENDS)
    else:
        backend = _check_name("backend", backend, BACKENDS)
    if compute == "auto" and not is_engine:
        compute = _check_name(COMPUTE_VARIABLE, os.environ.get(COMPUTE_VARIABLE), COMPUTE)
    else:
        compute = _check_name("compute", compute, COMPUTE)
    return backend, compute


def _check_name(where: str, name: str | None, known: tuple[str, ...]) -> str:
    if name and name not in ("auto", *known):
        raise _unknown(where, name, f"auto or one of {', '.join(known)}")
    return name or "auto"


def _unknown(where: str, found: str, expected: str) -> RuntimeFailure:
    return RuntimeFailure(
        where=where,
        found=repr(found),
        expected=expected,
        next_step="choose one of these",
    )


def list_candidates(path: Path, backend: str, device: str, compute: str) -> list[Candidate]:
    """Backends with compute precisions that fit the request on this machine; at least one.

    Args:
        path: the file.
        backend, device, compute: see `LoadOptions`.

    Raises:
        RuntimeFailure: none has such a compute precision, or the graph's operators.
    """
    backends = [backend]
    if backend == "auto":
        backends = ["onnxruntime"]
        has_openvino = find_spec("openvino") is not None
        if has_openvino and find_spec("onnxruntime") is None:
            backends = ["openvino"]
        elif has_openvino and (device == "cpu" or (device == "auto" and not _has_cuda())):
            backends = ["onnxruntime", "openvino"]
    if "openvino" in backends and read_manifest(path).operators == ONNXRUNTIME:
        backends = _without_openvino(backends, path)
    precisions = COMPUTE if compute == "auto" else (compute,)
    found = [Candidate(b, c) for b in backends for c in precisions if _computes_in(b, c, compute)]
    if not found:
        raise RuntimeFailure(
            where="compute",
            found=f"{compute!r} for the backend {' or '.join(backends)}",
            expected="the backend openvino on a processor with bfloat16",
            next_step="choose fp32, or install 'fedapt-runtime[openvino]'",
        )
    return found


def _computes_in(backend: str, precision: str, asked: str) -> bool:
    if precision == "fp32":
        return True
    if backend != "openvino":
        return False
    if asked == precision:
        return True  # the backend raises an error if the processor lacks it
    if not may_have_bfloat16():
        return False  # without importing OpenVINO, which takes a quarter of a second
    from fedapt_runtime.backends.openvino import has_bfloat16

    return has_bfloat16()


def _has_cuda() -> bool:
    from fedapt_runtime.backends.ort import PROVIDERS, import_onnxruntime

    return PROVIDERS["cuda"] in import_onnxruntime().get_available_providers()


def _keep_exact(candidates: list[Candidate], manifest: Manifest) -> tuple[list[Candidate], str]:
    """The candidates, without bfloat16 unless the export found no changed label, and a note."""
    agreement: Agreement | None = read_agreement(manifest, "bf16")
    if agreement is not None and agreement.is_enough and manifest.precision == "fp32":
        return candidates, f"bf16 {agreement}"
    if agreement is None or manifest.precision != "fp32":
        why = "was not compared in the export"
    else:
        why = str(agreement)
    exact = [candidate for candidate in candidates if candidate.compute == "fp32"]
    return exact, f"not bf16, which {why}"


def _without_openvino(backends: list[str], path: Path) -> list[str]:
    if backends == ["openvino"]:
        raise RuntimeFailure(
            where=path,
            found="operators of ONNX Runtime, for the backend openvino",
            expected="a model of ONNX operators",
            next_step="choose the backend onnxruntime, or export without `operators` onnxruntime",
        )
    return [backend for backend in backends if backend != "openvino"]


def _read_manifest(path: Path, head: str | Path | None) -> Manifest:
    manifest = read_manifest(path)
    return manifest if head is None else read_head(head).manifest_on(manifest)


def _hash_model(path: Path) -> str:
    """The content hash in the file; for older files, the hash of their bytes."""
    if found := read_manifest(path).content_sha256:
        return found
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_choice(path: Path, is_engine: bool, backend: str, device: str) -> None:
    if is_engine != (backend == "tensorrt"):
        raise RuntimeFailure(
            where=path,
            found=f"{'a TensorRT engine' if is_engine else 'an ONNX model'} for backend {backend}",
            expected="an .engine file for tensorrt, an .onnx file for the others",
            next_step="omit `backend`, or pass the other file",
        )
    if device not in ("auto", *_DEVICES_OF[backend]):
        raise RuntimeFailure(
            where="device",
            found=f"{device!r} for the backend {backend}",
            expected=f"auto or {' or '.join(_DEVICES_OF[backend])}",
            next_step="choose one of these, or another backend",
        )


def _load(path: Path, candidate: Candidate, options: LoadOptions) -> Backend:
    options = replace(options, backend=candidate.backend, compute=candidate.compute)
    if candidate.backend == "openvino":
        from fedapt_runtime.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(path, options)
    if candidate.backend == "tensorrt":
        from fedapt_runtime.backends.tensorrt import TensorRtBackend

        return TensorRtBackend(path, options.head)
    from fedapt_runtime.backends.ort_backend import OrtBackend

    return OrtBackend(path, options)
