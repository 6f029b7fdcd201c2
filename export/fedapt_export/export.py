"""Checkpoint -> model.onnx, written only after its parity has been shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx

from fedapt.core.errors import ExportError
from fedapt.core.files import hash_file, write_bytes
from fedapt.core.report import Reporter
from fedapt.model.backbone import load_backbone
from fedapt.model.checkpoint import load_checkpoint
from fedapt_export.fuse import attach_manifest, build_manifest, fuse
from fedapt_export.head import fedapt_head
from fedapt_export.images import collect_images
from fedapt_export.parity import Parity, measure_parity
from fedapt_export.swap import write_head
from fedapt_export.unknown import calibrate_unknown
from fedapt_runtime import Manifest

_MOST_MODEL_BYTES = 2_000_000_000


def export(
    checkpoint_path: Path,
    out: Path,
    *,
    data: Path | None,
    parity_images: int,
    least_agreement: float,
    reporter: Reporter,
    head_only: bool = False,
) -> Parity:
    """Fuse a checkpoint with its CLIP and write one ONNX file, or its head alone.

    Args:
        data: images for the parity report, by default those that the run folder names; without
            either, noise.
        parity_images: how many test images to compare; 0 takes all.
        least_agreement: share of images whose best class must survive the mixing of text banks.
        head_only: write the head as a .safetensors file; the whole graph is checked all the same.

    Raises:
        ParityError: the graph does not compute what the checkpoint computes; `out` is untouched.
        ReportedError: see `fedapt.core.errors`.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    images, source = collect_images(checkpoint, checkpoint_path, data, parity_images)
    info = checkpoint.info
    backbone = load_backbone(info.model, info.pretrained)
    reporter.message(f"model: {backbone.label}, {len(info.classes)} classes, {info.rounds} rounds")
    global_model = checkpoint.to_global_model(backbone)
    head = fedapt_head(global_model)
    model = fuse(backbone, head)
    if model.ByteSize() > _MOST_MODEL_BYTES:
        raise ExportError(
            where=f"model {backbone.label}",
            found=f"a graph of {model.ByteSize():,} bytes",
            expected=f"at most {_MOST_MODEL_BYTES:,}, what one ONNX file can hold",
            next_step="choose a smaller model",
        )
    reporter.message(f"comparing on {source}")
    parity = measure_parity(model.SerializeToString(), global_model, backbone, images, source)
    parity.check(least_agreement, out)
    manifest = dataclasses.replace(
        build_manifest(checkpoint, hash_file(checkpoint_path), parity.to_dict()),
        unknown=calibrate_unknown(checkpoint, checkpoint_path, data, backbone, reporter),
    )
    if head_only:
        write_head(head, manifest, out)
    else:
        write_model(model, manifest, out)
    return parity


def write_model(model: onnx.ModelProto, manifest: Manifest, out: Path) -> None:
    """Write a fused graph with its manifest, whole or not at all.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    attach_manifest(model, manifest)
    write_bytes(out, model.SerializeToString())
