"""Verification of an exported model against its checkpoint, at any time and on any data."""

from __future__ import annotations

from pathlib import Path

import onnx

from fedapt.core.errors import ExportError, ParityError, UsageError
from fedapt.core.files import hash_file
from fedapt.core.report import Reporter
from fedapt.model.backbone import load_backbone
from fedapt.model.checkpoint import load_checkpoint
from fedapt_export.fuse import read_fusable
from fedapt_export.images import collect_images, root_of_run
from fedapt_export.model_file import read_model
from fedapt_export.parity import Parity, measure_parity
from fedapt_export.precision import MAX_FEATURE_DIFFERENCE, to_runnable
from fedapt_runtime import Manifest


def verify(
    model_path: Path,
    checkpoint_path: Path,
    *,
    data: Path | None,
    images: int,
    min_agreement: float,
    reporter: Reporter,
) -> Parity:
    """Compare a fused model with the checkpoint from which it was exported.

    Args:
        model_path: the .onnx file.
        checkpoint_path: the checkpoint.
        data, images, min_agreement: see `export.export`.
        reporter: receives a line about the images.

    Returns:
        The figures, which are within the limits.

    Raises:
        UsageError: the two files are in the wrong order.
        ExportError: the model is missing or damaged.
        ModelFileError: the file is not a fedapt model.
        ParityError: the model is of another checkpoint, or differs from this one.
    """
    if (model_path.suffix, checkpoint_path.suffix) == (".safetensors", ".onnx"):
        raise UsageError(
            where="MODEL CHECKPOINT",
            found=f"{model_path} {checkpoint_path}",
            expected="the model first, then the checkpoint",
            next_step=f"fedapt verify {checkpoint_path} {model_path}",
        )
    checkpoint = load_checkpoint(checkpoint_path)
    model, manifest = _load(model_path)
    sha256 = hash_file(checkpoint_path)
    if manifest.checkpoint_sha256 != sha256:
        raise ParityError(
            where=model_path,
            found=f"a model of checkpoint {manifest.checkpoint_sha256[:12] or '(none)'}",
            expected=f"{sha256[:12]}, the hash of {checkpoint_path}",
            next_step="export this checkpoint, or verify against the right one",
        )
    pixels, source = collect_images(checkpoint, data or root_of_run(checkpoint_path), images)
    backbone = load_backbone(
        checkpoint.info.model, checkpoint.info.pretrained, depth=checkpoint.info.preprocessing.depth
    )
    reporter.message(f"comparing on {source}")
    fusable = read_fusable(checkpoint, backbone, manifest.mixing, manifest.domains[0])
    runnable = to_runnable(model, manifest.precision)
    parity = measure_parity(runnable, fusable, backbone, pixels, source)
    parity.check(min_agreement, model_path, MAX_FEATURE_DIFFERENCE[manifest.precision])
    return parity


def _load(path: Path) -> tuple[onnx.ModelProto, Manifest]:
    model, manifest = read_model(path)
    if manifest.precision not in MAX_FEATURE_DIFFERENCE:
        raise ExportError(
            where=path,
            found=f"the precision {manifest.precision!r}",
            expected=", ".join(MAX_FEATURE_DIFFERENCE),
            next_step="verify with the fedapt version that wrote the model",
        )
    return model, manifest
