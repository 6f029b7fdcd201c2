"""Checkpoint -> model.onnx, written only after its parity is verified."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fedapt.core.errors import ExportError, ReportedError, UsageError
from fedapt.core.files import claim_file, hash_file, write_bytes
from fedapt.core.report import Reporter
from fedapt.model.backbone import load_backbone
from fedapt.model.checkpoint import Checkpoint, load_checkpoint
from fedapt_export.calibrate import Calibration, calibrate
from fedapt_export.compute import ComputeReport, compare_bfloat16_products
from fedapt_export.fuse import (
    attach_manifest,
    build_manifest,
    fuse,
    read_fusable,
    read_fusable_tower,
    read_opset,
)
from fedapt_export.images import collect_calibration, collect_labelled_images, has_photos
from fedapt_export.parity import Parity, measure_parity
from fedapt_export.precision import (
    MAX_DISAGREEMENT,
    MAX_FEATURE_DIFFERENCE,
    PrecisionReport,
    check_precision,
    compare_with_float32,
    lower_precision,
    to_runnable,
)
from fedapt_export.swap import write_head
from fedapt_export.unknown import calibrate_unknown
from fedapt_runtime import Manifest
from fedapt_runtime.agreement import PARITY_KEY
from fedapt_runtime.machine import usable_memory

MIXINGS = ("exact", "hard")
_MAX_MODEL_BYTES = 2_000_000_000


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export.

    Attributes:
        data: images for the reports, by default those that the run folder names; without either,
            noise.
        parity_images: how many test images to compare; 0 takes all.
        min_agreement: share of images whose best class must survive the mixing of text banks.
        head_only: write the head as a .safetensors file; the whole graph is checked all the same.
        mixing: mixing of the text banks, `exact` or `hard`.
        precision: precision of the image tower, one of `precision.PRECISIONS`.
        calibration: images that set the scales of int8, by default the run's training images.
        calibration_images: how many of them; 0 takes all.
        symmetric: int8 around zero, as TensorRT takes it; see `int8.to_int8`.
        reduced_range: int8 weights in 7 bits, for x86 without VNNI; see `int8.to_int8`.
        max_disagreement: share of images that a lower precision may label otherwise than float32;
            None takes `precision.MAX_DISAGREEMENT`.
        calibrate: fit the logit scale to the run's validation images; no label changes.
        client: the client whose model is written, of a method that has one for each.
        force: write a lower precision that disagrees, is slower, or does not run on this machine.
    """

    data: Path | None = None
    parity_images: int = 128
    min_agreement: float = 0.98
    head_only: bool = False
    mixing: str = "exact"
    precision: str = "fp32"
    calibration: Path | None = None
    calibration_images: int = 128
    symmetric: bool = False
    reduced_range: bool = False
    max_disagreement: float | None = None
    calibrate: bool = False
    client: str = ""
    force: bool = False

    def check_out(self, out: Path) -> None:
        """Refuse the suffix of another kind of file: an engine of that name replaces the model.

        Raises:
            UsageError: the suffix is not that of what is written.
        """
        of_head = ".safetensors with `head_only`"
        if out.suffix != (".safetensors" if self.head_only else ".onnx"):
            raise UsageError(
                where=f"out {out}",
                found=f"the suffix {out.suffix!r}",
                expected=of_head if self.head_only else f".onnx, or {of_head}",
                next_step="rename the output",
            )

    def check(self) -> None:
        """Refuse settings that exclude each other.

        Raises:
            UsageError: see above.
        """
        check_precision(self.precision, self.calibration is not None, self.reduced_range)
        if self.mixing not in MIXINGS:
            raise UsageError(
                where="mixing",
                found=repr(self.mixing),
                expected=" or ".join(MIXINGS),
                next_step="choose one of these",
            )
        if self.head_only and self.precision != "fp32":
            raise UsageError(
                where="head_only and precision",
                found=f"both, with {self.precision}",
                expected="one of them: the head is float32 in every model",
                next_step="leave one out",
            )


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
                expected="about ten times the weights of the image tower",
                next_step="export on a machine with more memory, or choose a smaller model;"
                " nothing was written",
            ) from error


def _export(
    checkpoint: Checkpoint,
    checkpoint_path: Path,
    out: Path,
    settings: ExportSettings,
    reporter: Reporter,
) -> Exported:
    images, source, truth = collect_labelled_images(
        checkpoint, checkpoint_path, settings.data, settings.parity_images
    )
    calibration = None
    if settings.precision == "int8":
        calibration, scales = collect_calibration(
            checkpoint, checkpoint_path, settings.calibration, settings.calibration_images
        )
        reporter.message(f"calibrating on {scales}")
    info = checkpoint.info
    backbone = load_backbone(info.model, info.pretrained, depth=info.preprocessing.depth)
    reporter.message(f"model: {backbone.label}, {len(info.classes)} classes, {info.rounds} rounds")
    fusable = read_fusable(checkpoint, backbone, settings.mixing, settings.client)
    fitted = None
    if settings.calibrate:
        fusable, fitted = calibrate(fusable, checkpoint, checkpoint_path, settings.data, backbone)
        reporter.message(
            f"calibrated on {fitted.images} validation images: logits times"
            f" {fitted.factor:.2f}, expected calibration error"
            f" {100 * fitted.error_before:.1f} -> {100 * fitted.error:.1f} %"
        )
    head, tower = fusable.head, read_fusable_tower(fusable, backbone)
    reference = fuse(tower, head, backbone.label)
    _check_size(reference, backbone.label)
    model, comparison = reference, None
    if settings.precision != "fp32":
        lowered = lower_precision(
            tower,
            settings.precision,
            calibration,
            symmetric=settings.symmetric,
            reduced_range=settings.reduced_range,
        )
        model = fuse(lowered, head, backbone.label)
        comparison = compare_with_float32(
            reference,
            model,
            settings.precision,
            images,
            truth,
            reduced_range=settings.reduced_range,
        )
    reporter.message(f"comparing on {source}")
    runnable = to_runnable(model, settings.precision)
    parity = measure_parity(runnable, fusable, backbone, images, source)
    parity.check(settings.min_agreement, out, MAX_FEATURE_DIFFERENCE[settings.precision])
    if comparison is not None:
        _check_precision(comparison, settings, out, reporter)
    bfloat16 = None
    if settings.precision == "fp32" and has_photos(checkpoint_path, settings.data):
        bfloat16 = compare_bfloat16_products(reference, tower, head, images)
        if bfloat16 is not None:
            reporter.message(f"products in bfloat16: {bfloat16.agreement}")
    manifest = build_manifest(
        checkpoint,
        fusable,
        hash_file(checkpoint_path),
        report_parity(parity, comparison, fitted, bfloat16),
        mixing=settings.mixing,
        precision=settings.precision,
        opset=read_opset(model),
    )
    unknown = calibrate_unknown(
        checkpoint, fusable, checkpoint_path, settings.data, backbone, reporter
    )
    manifest = dataclasses.replace(manifest, unknown=unknown)
    if settings.head_only:
        write_head(head, manifest, out)
    else:
        write_model(model, manifest, out)
    return Exported(manifest, parity, comparison, images)


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


def _check_size(model: onnx.ModelProto, label: str) -> None:
    if model.ByteSize() > _MAX_MODEL_BYTES:
        raise ExportError(
            where=f"model {label}",
            found=f"a graph of {model.ByteSize():,} bytes",
            expected=f"at most {_MAX_MODEL_BYTES:,}, the maximum of one ONNX file",
            next_step="choose a smaller model",
        )


def write_model(model: onnx.ModelProto, manifest: Manifest, out: Path) -> None:
    """Write a fused graph with its manifest, completely or not at all.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    attach_manifest(model, manifest)
    write_bytes(out, model.SerializeToString())
