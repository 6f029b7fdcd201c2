"""A backbone's image tower as an ONNX graph, traced and simplified; kept in the cache."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import onnx
import torch
from torch import nn

from fedapt.core.errors import FileError
from fedapt.core.files import cache_folder
from fedapt.model.backbone import Backbone
from fedapt.model.image_tower import FEATURES, INPUT, image_tower
from fedapt.onnx.batch_norm import unfold_batch_norms
from fedapt.onnx.memory import check_memory
from fedapt.onnx.normalisation import fold_normalisation
from fedapt.onnx.patches import multiply_patches
from fedapt.onnx.rewrite import rewrite_for_tracing
from fedapt.onnx.trace import OPSET, trace_to_onnx
from fedapt.onnx.weights import load_with_weights, map_weights

_TRACE = 2.5  # see `check_memory`
_TOWER_VERSION = 8  # raise when the trace of a tower changes


def image_tower_to_onnx(backbone: Backbone, tower: nn.Module | None = None) -> onnx.ModelProto:
    """The image tower as ONNX, input `images`, output `features`.

    Args:
        tower: a module to trace instead, from the same pixels to features of the same width.

    Raises:
        ExportError: the tower cannot be traced.
    """
    tower = tower or image_tower(backbone)
    # modules are replaced, and weights never changed: the copy shares them
    tower = copy.deepcopy(tower, {id(weight): weight for weight in tower.parameters()}).eval()
    rewrite_for_tracing(tower)
    height, width = backbone.preprocessing.size
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8, device=backbone.device)
    model = trace_to_onnx(tower, example, INPUT, [FEATURES])
    fold_normalisation(model)
    multiply_patches(model)
    unfold_batch_norms(model)
    return model


def find_tower(backbone: Backbone) -> Path:
    """The cache's file for the image tower as ONNX, whether it exists or not."""
    determined_by = (
        f"{_TOWER_VERSION} {backbone.image_sha256} {backbone.preprocessing} opset {OPSET}"
        f" torch {torch.__version__}"
    )
    key = hashlib.sha256(determined_by.encode()).hexdigest()[:32]
    return cache_folder() / "towers" / f"{key}.onnx"


def read_tower(backbone: Backbone) -> onnx.ModelProto:
    """The image tower as ONNX, from the cache or exported into it.

    Raises:
        ExportError: the tower cannot be traced, or this machine has too little memory for it.
    """
    path = find_tower(backbone)
    try:
        return load_with_weights(path)
    except Exception:  # absent or damaged: protobuf's errors have no common base
        check_memory(backbone, _TRACE, "trace its image tower")
        model = image_tower_to_onnx(backbone)
    try:
        return map_weights(model, path)
    except FileError:  # a cache that cannot be written costs time and memory, not correctness
        return model
