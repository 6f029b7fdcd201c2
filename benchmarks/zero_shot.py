"""Zero-shot models, for benchmarks whose speed does not depend on what the head has learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedapt.model.backbone import Backbone
from fedapt.onnx.tower import read_tower
from fedapt_export.fuse import build_zero_shot_manifest, fuse
from fedapt_export.head import zero_shot_head
from fedapt_export.model_file import write_model
from fedapt_export.precision import lower_precision

CALIBRATION = 64  # images


def write_zero_shot(
    backbone: Backbone, classes: tuple[str, ...], out: Path, int8_from: Sequence[str] = ()
) -> Path:
    """A model that `fedapt-runtime` runs.

    Args:
        int8_from: image files, of which the first 64 calibrate the tower in int8; without any the
            tower is float32.
    """
    tower = read_tower(backbone)
    if int8_from:
        load = backbone.preprocessing.load
        images = np.stack([load(path) for path in int8_from[:CALIBRATION]])
        tower = lower_precision(tower, "int8", images)
    graph = fuse(tower, zero_shot_head(backbone, classes), backbone.label)
    precision = "int8" if int8_from else "fp32"
    write_model(
        graph, replace(build_zero_shot_manifest(backbone, classes), precision=precision), out
    )
    return out
