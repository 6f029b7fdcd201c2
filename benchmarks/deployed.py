"""The models that benchmarks of deployments run: `lite` on Office-Caltech10, float32 and int8."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from photos import photos_root

import fedapt


@contextmanager
def deployed_models(description: str) -> Iterator[dict[str, Path]]:
    """`fp32` and `int8`, exported from a run with the recommended settings.

    `--models DIR` keeps both, and takes those that are there.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--models", type=Path, help="keeps lite.onnx and lite_int8.onnx")
    folder = parser.parse_args().models
    with tempfile.TemporaryDirectory() as temporary:
        folder = folder or Path(temporary)
        models = {"fp32": folder / "lite.onnx", "int8": folder / "lite_int8.onnx"}
        if not all(path.is_file() for path in models.values()):
            run = fedapt.train(photos_root(), folder / "run", preset="recommended")
            for precision, path in models.items():
                run.export(path, precision=precision, force=precision != "fp32")
        yield models


def choose_photos(count: int) -> list[Path]:
    """A fixed sample of all domains and classes."""
    everything = sorted(photos_root().glob("*/*/*.jpg"))
    chosen = np.random.default_rng(0).permutation(len(everything))[:count]
    return [everything[i] for i in sorted(chosen)]
