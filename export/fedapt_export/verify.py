"""An exported model against its checkpoint, at any later time and on any data."""

from __future__ import annotations

from pathlib import Path

from fedapt.core.errors import ParityError
from fedapt.core.files import hash_file
from fedapt.core.report import Reporter
from fedapt.model.backbone import load_backbone
from fedapt.model.checkpoint import load_checkpoint
from fedapt_export.images import collect_images
from fedapt_export.parity import Parity, measure_parity
from fedapt_runtime import Classifier


def verify(
    model_path: Path,
    checkpoint_path: Path,
    *,
    data: Path | None,
    images: int,
    least_agreement: float,
    reporter: Reporter,
) -> Parity:
    """Measure a fused model against the checkpoint that it should have come from.

    Args:
        data, images, least_agreement: as in `export.export`.

    Raises:
        ModelFileError: the model is missing, damaged, or no fedapt model.
        ParityError: it came from another checkpoint, or does not compute what this one computes.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    manifest = Classifier.load(model_path, device="cpu").manifest
    sha256 = hash_file(checkpoint_path)
    if manifest.checkpoint_sha256 != sha256:
        raise ParityError(
            where=model_path,
            found=f"a model of checkpoint {manifest.checkpoint_sha256[:12] or '(none)'}",
            expected=f"{sha256[:12]}, the hash of {checkpoint_path}",
            next_step="export this checkpoint, or verify against the right one",
        )
    pixels, source = collect_images(checkpoint, checkpoint_path, data, images)
    backbone = load_backbone(checkpoint.info.model, checkpoint.info.pretrained)
    reporter.message(f"comparing on {source}")
    model = checkpoint.to_global_model(backbone)
    parity = measure_parity(model_path, model, backbone, pixels, source)
    parity.check(least_agreement, model_path)
    return parity
