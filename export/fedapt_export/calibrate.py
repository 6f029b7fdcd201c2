"""The logit scale of the head, fitted on validation images to calibrate the probabilities."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedapt.core.errors import DataError
from fedapt.data.features import extract_features
from fedapt.model.backbone import Backbone
from fedapt.model.checkpoint import Checkpoint
from fedapt.onnx.image_encoder import image_encoder
from fedapt.training.calibration import calibration_error, fit_scale
from fedapt.training.methods.base import Fusable
from fedapt_export.images import open_images


@dataclass(frozen=True)
class Calibration:
    """Effect of the calibration on the probabilities of validation images.

    Attributes:
        images: number of validation images.
        factor: factor for the logit scale.
        error_before, error: expected calibration error, from 0 to 1, without and with the factor.
    """

    images: int
    factor: float
    error_before: float
    error: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def calibrate(
    fusable: Fusable,
    checkpoint: Checkpoint,
    data: Path | None,
    backbone: Backbone,
) -> tuple[Fusable, Calibration]:
    """The same global model with a logit scale fitted to validation images; no label changes.

    Args:
        fusable: the global model.
        checkpoint: its checkpoint.
        data: a folder of domains, or None.
        backbone: the CLIP model, which encodes the images.

    Raises:
        DataError: there are no validation images, or the model has its own image tower.

    Source: `fedapt.training.calibration`.
    """
    images = None if data is None else open_images(checkpoint, data)
    if images is not None:
        images = images.renumber(checkpoint.info.classes, "the checkpoint")
    samples = [] if images is None else list(images.split.validation.values())
    paths = [images.root / s.path for part in samples for s in part] if images else []
    if not paths or fusable.tower is not None:
        raise DataError(
            where="calibrating the probabilities",
            found="no validation images" if not paths else "a model with its own image tower",
            expected="validation images, which a run keeps with data.validation_fraction",
            next_step="train with validation images and name their folder, or omit the calibration",
        )
    found = extract_features(paths, image_encoder(backbone))
    names = [sample.label for part in samples for sample in part]
    labels = torch.from_numpy(np.array(names, dtype=np.int64)[found.kept]).to(backbone.device)
    logits = fusable.head.logits(torch.from_numpy(np.array(found.values)).to(backbone.device))
    factor = fit_scale(logits, labels)
    head = replace(fusable.head, logit_scale=fusable.head.logit_scale * factor)
    calibration = Calibration(
        len(labels),
        factor,
        calibration_error(logits, labels),
        calibration_error(factor * logits, labels),
    )
    exact = fusable.exact
    return replace(fusable, head=head, exact=lambda f: factor * exact(f)), calibration
