"""Export without a limit on agreement: a few rounds of a tiny CLIP route softly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedapt.core.report import Reporter
from fedapt.model.prompted_clip import GlobalModel
from fedapt.train.methods.base import Fusable
from fedapt_export.export import Exported, ExportSettings, export


def export_run(run: Path, out: Path, **settings: Any) -> Exported:
    """Fuse a run's checkpoint, compared on all of its test images."""
    chosen = ExportSettings(**({"parity_images": 0, "least_agreement": 0.0} | settings))
    return export(run / "checkpoint.safetensors", out, chosen, Reporter())


def as_fusable(model: GlobalModel) -> Fusable:
    """FedAPT's global model, as an export takes it."""
    names = tuple(f"domain {n}" for n in range(model.n_domains))
    return Fusable(model.head, names, model.exact_logits)
