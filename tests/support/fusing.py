"""Export without a limit on agreement: a few rounds of a tiny CLIP route softly.

Models and heads that a test has changed are written with the hash of what they hold now.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from safetensors.numpy import save_file

from fedapt.core.report import Reporter
from fedapt.model.prompted_clip import GlobalModel
from fedapt.training.methods.base import Fusable
from fedapt_export.export import Exported, export
from fedapt_export.model_file import read_manifest, write_model
from fedapt_export.settings import ExportSettings
from fedapt_runtime import Manifest
from fedapt_runtime.integrity import list_content


def export_run(run: Path, out: Path, **settings: Any) -> Exported:
    """Fuse a run's checkpoint, compared on all of its test images."""
    chosen = ExportSettings(**({"parity_images": 0, "min_agreement": 0.0} | settings))
    return export(run / "checkpoint.safetensors", out, chosen, Reporter())


def as_fusable(model: GlobalModel) -> Fusable:
    """FedAPT's global model, as an export takes it."""
    names = tuple(f"domain {n}" for n in range(model.n_domains))
    return Fusable(model.head, names, model.exact_logits)


def save_changed(model: onnx.ModelProto, path: Path) -> None:
    """Write a model that was changed on purpose."""
    if model.metadata_props:
        write_model(model, read_manifest(model, path), path)
    else:
        onnx.save(model, path)


def save_head(tensors: dict[str, NDArray[np.float32]], manifest: Manifest, path: Path) -> None:
    """Write a head of any tensors and names."""
    save_file(tensors, path, {"fedapt": manifest.seal(list_content(tensors))})
