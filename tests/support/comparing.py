"""A comparison of the tiny CLIP on the tiny images."""

from __future__ import annotations

from pathlib import Path

from fedapt.core.config import Config, read_config


def comparison_config(clip: Path, images: Path) -> Config:
    """Two rounds, evaluated after each on a quarter of the training images."""
    return read_config(
        None,
        [],
        {
            "data.root": str(images),
            "data.validation_fraction": 0.25,
            "model.name": str(clip),
            "train.rounds": 2,
            "train.batch_size": 8,
            "train.evaluate_every": 1,
            "prompt.context_length": 4,
        },
    )


def cells_of(folder: Path) -> dict[str, int]:
    """Result files and when they were written."""
    found = (folder / "cells").rglob("*.json")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}
