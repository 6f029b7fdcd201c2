"""Checkpoint -> model.onnx and, on request, a TensorRT engine, a Triton repository, a web page."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedapt.core.errors import UsageError
from fedapt.core.report import Reporter
from fedapt_export.build_script import write_build_script
from fedapt_export.engine import EngineSettings, build_engine
from fedapt_export.export import Exported, export
from fedapt_export.precision import STORED
from fedapt_export.settings import ExportSettings
from fedapt_export.triton import write_repository
from fedapt_export.web.bundle import Bundle, write_bundle
from fedapt_export.web.runtime_files import read_runtime_files
from fedapt_runtime.manifest import ONNXRUNTIME


@dataclass(frozen=True)
class Delivered:
    """The written files.

    Attributes:
        exported: the manifest and the reports.
        model: the .onnx file, or the head's .safetensors.
        engine: the TensorRT engine beside it; None if it was not built here.
        script: a script that builds the engine on another machine; None if it is not needed.
        repository: the model's folder in the Triton repository; None if it was not requested.
        bundle: the web page that runs the model in browsers; None if it was not requested.
    """

    exported: Exported
    model: Path
    engine: Path | None = None
    script: Path | None = None
    repository: Path | None = None
    bundle: Bundle | None = None


def deliver(
    checkpoint: Path,
    out: Path,
    settings: ExportSettings,
    reporter: Reporter,
    *,
    engine: EngineSettings | None = None,
    trt: bool = False,
    triton: Path | None = None,
    web: Path | None = None,
    onnxruntime_web: Path | None = None,
) -> Delivered:
    """Export a checkpoint; then build its TensorRT engine, Triton repository and web page.

    Args:
        checkpoint: checkpoint of a method that can be fused.
        out: the .onnx file to write, or the head's .safetensors.
        settings: settings of the export; `symmetric` is set from `trt`.
        reporter: receives the progress and the names of the files.
        engine: settings of the TensorRT engine; the Triton repository has the same batch sizes.
        trt: whether to build the engine, beside `out` with the suffix .engine.
        triton: folder of a Triton model repository; None omits it.
        web: folder of a static page that runs the model in browsers; None omits it.
        onnxruntime_web: npm package for `web`, see `web.runtime_files.read_runtime_files`.

    Raises:
        UsageError: settings that exclude each other.
        ReportedError: see `fedapt.core.errors`; files of earlier steps stay.
    """
    if settings.head_only and (trt or triton or web):
        raise UsageError(
            where="head_only and " + ("trt" if trt else "triton" if triton else "web"),
            found="both",
            expected="one of them: a TensorRT engine, a server or a page needs the whole graph",
            next_step="leave one out",
        )
    if settings.operators == ONNXRUNTIME and (trt or web):
        raise UsageError(
            where="operators and " + ("trt" if trt else "web"),
            found=f"both, with {ONNXRUNTIME}",
            expected="one of them: only ONNX Runtime itself has these operators",
            next_step="leave one out",
        )
    if settings.precision == STORED and trt:
        raise UsageError(
            where="precision and trt",
            found=f"both, with {STORED}",
            expected="a precision that TensorRT computes in: fp32, fp16, bf16 or int8",
            next_step="choose another precision, or leave `trt` out",
        )
    engine = engine or EngineSettings()
    engine.check()  # before any work
    obstacle = engine.find_obstacle(settings.precision) if trt else ""
    runtime = {}
    if web is not None:
        runtime = read_runtime_files(settings.precision, onnxruntime_web, reporter)
    if trt and not obstacle:
        engine = engine.resolve(settings.precision)
    settings = dataclasses.replace(settings, symmetric=trt)
    exported = export(checkpoint, out, settings, reporter)
    beside = ""
    if exported.manifest.weights is not None:
        weights = out.with_name(exported.manifest.weights["file"])
        beside = f" and {weights.name} ({_megabytes(weights)}), which belong together"
    reporter.message(f"written: {out} ({_megabytes(out)}){beside}")
    plan, script, served, repository = None, None, out, None
    if obstacle:
        script = write_build_script(out, exported.manifest, engine)
        reporter.message(
            f"written: {script}; no engine is built here ({obstacle}): run it with the model on the"
            " machine with the GPU"
        )
    elif trt:
        plan = out.with_suffix(".engine")
        description = build_engine(out, plan, engine, exported.images)
        reporter.message(f"written: {plan} ({_megabytes(plan)}, {_describe_engine(description)}")
        if engine.flavour != "rtx":  # Triton has no backend for TensorRT-RTX
            served = plan
    if triton is not None:
        repository = write_repository(served, triton, exported.manifest, engine)
        reporter.message(f"written: {repository}, which serves {served.name} in Triton")
    bundle = None
    if web is not None:
        bundle = write_bundle(out, web, runtime)
        sizes = ", ".join(f"{part} {size / 1e6:.1f} MB" for part, size in bundle.bytes.items())
        total = sum(bundle.gzip_bytes.values()) / 1e6
        reporter.message(f"written: {web} ({sizes}; {total:.1f} MB to a browser with gzip)")
    return Delivered(exported, out, plan, script, repository, bundle)


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def _describe_engine(description: dict[str, Any]) -> str:
    library = " ".join(description["library"].values())
    run = "not verified: its GPU is not in this machine"
    if verified := description["verified"]:
        run = f"verified here, probabilities within {verified['probability_difference']:.1e}"
    return f"{library}, {', '.join(description['compute_capabilities'])}); {run}"
