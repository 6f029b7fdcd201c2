"""Checkpoint -> model.onnx, written only after its parity is verified."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from fedapt.core.errors import ExportError, ReportedError
from fedapt.core.files import claim_file, hash_file, temporary_folder
from fedapt.core.report import Reporter
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.checkpoint import Checkpoint, load_checkpoint
from fedapt.onnx.image_encoder import image_encoder
from fedapt.onnx.memory import check_memory
from fedapt.onnx.trace import OPSET
from fedapt.onnx.weights import map_weights
from fedapt.training.methods.base import Fusable
from fedapt_export.calibrate import Calibration, calibrate
from fedapt_export.compute import (
    ComputeReport,
    compare_bfloat16_products,
    emulate_bfloat16_products,
    is_emulated,
)
from fedapt_export.fuse import (
    build_manifest,
    fuse,
    read_fusable,
    read_fusable_tower,
    read_opset,
)
from fedapt_export.fused_operators import fuse_operators
from fedapt_export.images import (
    collect_calibration,
    collect_features,
    collect_labelled_images,
    root_of_run,
)
from fedapt_export.model_file import write_model
from fedapt_export.parity import Parity, measure_head, measure_parity
from fedapt_export.precision import (
    MAX_DISAGREEMENT,
    MAX_FEATURE_DIFFERENCE,
    PrecisionReport,
    compare_with_float32,
    lower_precision,
    to_runnable,
)
from fedapt_export.settings import ExportSettings
from fedapt_export.swap import write_head
from fedapt_export.unknown import calibrate_unknown
from fedapt_runtime import Manifest
from fedapt_runtime.agreement import PARITY_KEY
from fedapt_runtime.machine import usable_memory
from fedapt_runtime.manifest import ONNXRUNTIME

# memory in weights of the image tower, see `check_memory`
_MEMORY = {"fp32": 1.5, "fp16": 4.5, "bf16": 4.5, "int8": 4.5, "fp16-weights": 3.5}


@dataclass(frozen=True)
class Exported:
    """A finished export: its manifest and its reports."""

    manifest: Manifest
    parity: Parity
    precision: PrecisionReport | None
    images: NDArray[np.uint8] = field(repr=False)  # that both were measured on

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the parity report, and `against_fp32` for a lower precision."""
        return dict(self.manifest.parity)


def report_parity(
    parity: Parity,
    precision: PrecisionReport | None,
    calibration: Calibration | None = None,
    bfloat16: ComputeReport | None = None,
) -> dict[str, Any]:
    """Figures of both comparisons and of the calibration, for the manifest."""
    lower = {} if precision is None else {"against_fp32": precision.to_dict()}
    fitted = {} if calibration is None else {"calibration": calibration.to_dict()}
    computed = {} if bfloat16 is None else {PARITY_KEY: {"bf16": bfloat16.to_dict()}}
    return parity.to_dict() | lower | fitted | computed


def export(
    checkpoint_path: Path, out: Path, settings: ExportSettings, reporter: Reporter
) -> Exported:
    """Fuse a checkpoint with its CLIP and write one ONNX file, or its head alone.

    Raises:
        ParityError: the graph does not compute what the checkpoint computes, or a lower precision
            changes too many labels; `out` is untouched.
        FileError: another job writes `out`, or it cannot be written.
        ReportedError: see `fedapt.core.errors`.
    """
    settings.check()
    settings.check_out(out)
    checkpoint = load_checkpoint(checkpoint_path)
    with claim_file(out):
        try:
            return _export(checkpoint, checkpoint_path, out, settings, reporter)
        except MemoryError as error:
            memory = usable_memory()
            raise ExportError(
                where=f"model {checkpoint.info.model}",
                found="too little memory" + (f" in {memory / 1e9:.0f} GB" if memory else ""),
                expected="a few times the weights of the image tower",
                next_step="export on a machine with more memory, or choose a smaller model;"
                " nothing was written",
            ) from error


@dataclass(frozen=True)
class _Source:
    """The global model that is exported."""

    checkpoint: Checkpoint
    backbone: Backbone
    fusable: Fusable
    scratch: Path  # a folder beside the output, for weights that are not in the cache


@dataclass(frozen=True)
class _Built:
    """A fused graph with its measurements; a head alone has no graph."""

    parity: Parity
    images: NDArray[np.uint8]
    model: onnx.ModelProto | None = None
    precision: PrecisionReport | None = None
    bfloat16: ComputeReport | None = None


def _export(
    checkpoint: Checkpoint,
    checkpoint_path: Path,
    out: Path,
    settings: ExportSettings,
    reporter: Reporter,
) -> Exported:
    info, of_run = checkpoint.info, root_of_run(checkpoint_path)
    settings = dataclasses.replace(
        settings, data=settings.data or of_run, calibration=settings.calibration or of_run
    )
    backbone = load_backbone(info.model, info.pretrained, depth=info.preprocessing.depth)
    reporter.message(f"model: {backbone.label}, {len(info.classes)} classes, {info.rounds} rounds")
    fusable, fitted = read_fusable(checkpoint, backbone, settings.mixing, settings.client), None
    if settings.calibrate:
        fusable, fitted = calibrate(fusable, checkpoint, settings.data, backbone)
        reporter.message(
            f"calibrated on {fitted.images} validation images: logits times"
            f" {fitted.factor:.2f}, expected calibration error"
            f" {100 * fitted.error_before:.1f} -> {100 * fitted.error:.1f} %"
        )
    build = _build_head
    # a head behind a tower of its own is measured as a whole graph
    if not settings.head_only or fusable.tower is not None:
        check_memory(backbone, _MEMORY[settings.precision], f"export it in {settings.precision}")
        build = _build_model
    with temporary_folder(out.parent) as scratch:
        built = build(_Source(checkpoint, backbone, fusable, scratch), out, settings, reporter)
        manifest = build_manifest(
            checkpoint,
            fusable,
            hash_file(checkpoint_path),
            report_parity(built.parity, built.precision, fitted, built.bfloat16),
            mixing=settings.mixing,
            precision=settings.precision,
            opset=OPSET if built.model is None else read_opset(built.model),
            operators=settings.operators,
        )
        unknown = calibrate_unknown(checkpoint, fusable, settings.data, backbone, reporter)
        manifest = dataclasses.replace(manifest, unknown=unknown)
        if settings.head_only or built.model is None:
            write_head(fusable.head, manifest, out)
        else:
            manifest = write_model(built.model, manifest, out)
        return Exported(manifest, built.parity, built.precision, built.images)


def _build_head(source: _Source, out: Path, settings: ExportSettings, reporter: Reporter) -> _Built:
    features, origin = collect_features(
        source.checkpoint,
        settings.data,
        settings.parity_images,
        image_encoder(source.backbone),
    )
    reporter.message(f"comparing on {origin}")
    parity = measure_head(
        source.fusable, torch.from_numpy(features).to(source.backbone.device), origin
    )
    parity.check(settings.min_agreement, out)
    return _Built(parity, np.empty((0, *source.backbone.preprocessing.size, 3), np.uint8))


def _build_model(
    source: _Source, out: Path, settings: ExportSettings, reporter: Reporter
) -> _Built:
    images, origin, truth = collect_labelled_images(
        source.checkpoint, settings.data, settings.parity_images
    )
    calibration = None
    if settings.precision == "int8":
        calibration, scales = collect_calibration(
            source.checkpoint, settings.calibration, settings.calibration_images
        )
        reporter.message(f"calibrating on {scales}")
    fusable, backbone = source.fusable, source.backbone
    head, tower = fusable.head, read_fusable_tower(fusable, backbone)
    reference = fuse(tower, head, backbone.label)
    model, comparison = reference, None
    lowered = lower_precision(
        tower,
        settings.precision,
        calibration,
        symmetric=settings.symmetric,
        reduced_range=settings.reduced_range,
    )
    if settings.operators == ONNXRUNTIME:
        lowered = _fuse_operators(lowered, backbone.label, reporter)
    if lowered is not tower:
        lowered = map_weights(lowered, source.scratch / "tower.onnx")
        model = fuse(lowered, head, backbone.label)
    del lowered
    if settings.precision != "fp32":
        comparison = compare_with_float32(
            reference,
            model,
            settings.precision,
            images,
            truth,
            reduced_range=settings.reduced_range,
        )
    compares = model is reference and settings.data is not None
    emulated = emulate_bfloat16_products(tower) if compares and is_emulated(tower) else None
    reporter.message(f"comparing on {origin}")
    runnable = to_runnable(model, settings.precision)
    parity = measure_parity(runnable, fusable, backbone, images, origin)
    del runnable
    parity.check(settings.min_agreement, out, MAX_FEATURE_DIFFERENCE[settings.precision])
    if comparison is not None:
        _check_precision(comparison, settings, out, reporter)
    bfloat16 = None
    if emulated is not None:
        bfloat16 = compare_bfloat16_products(model, emulated, head, images)
        reporter.message(f"products in bfloat16: {bfloat16.agreement}")
    return _Built(parity, images, model, comparison, bfloat16)


def _fuse_operators(tower: onnx.ModelProto, label: str, reporter: Reporter) -> onnx.ModelProto:
    fused, n_fused = fuse_operators(tower)
    if not n_fused:
        raise ExportError(
            where=f"model {label}",
            found="an image tower without attention or LayerNorm that ONNX Runtime fuses",
            expected="the operators of a ViT",
            next_step="leave `operators` out: this model gains nothing; nothing was written",
        )
    reporter.message(f"{n_fused} operators of ONNX Runtime; no other library reads the file")
    return fused


def _check_precision(
    comparison: PrecisionReport, settings: ExportSettings, out: Path, reporter: Reporter
) -> None:
    most = settings.max_disagreement
    try:
        comparison.check(MAX_DISAGREEMENT[settings.precision] if most is None else most, out)
    except ReportedError as error:
        if not settings.force:
            raise
        reporter.message(f"forced: {error.found}")
