"""The images on which an exported graph is compared with its checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedapt.core.config import read_config
from fedapt.core.errors import DataError
from fedapt.core.seeds import child_seed
from fedapt.data.folders import scan_folders
from fedapt.data.splits import Split, split_folders
from fedapt.model.checkpoint import Checkpoint
from fedapt_runtime import Preprocessing
from fedapt_runtime.pipeline import decode_ahead


def collect_images(
    checkpoint: Checkpoint, checkpoint_path: Path, data: Path | None, count: int
) -> tuple[NDArray[np.uint8], str]:
    """Test images for a comparison: uint8 [n, height, width, 3], and a line that says which.

    Args:
        data: a folder of domains; None takes the one that the run folder names, else noise.
        count: how many at most, drawn from a fixed seed; 0 takes all.

    Raises:
        DataError: there is no readable test image.
    """
    preprocessing = Preprocessing.from_dict(checkpoint.info.preprocessing)
    if data is None:
        data = root_of_run(checkpoint_path)
    if data is None:
        generator = np.random.default_rng(child_seed(0, "parity images"))
        shape = (min(count or 64, 64), *preprocessing.size, 3)
        noise = generator.integers(0, 256, shape, dtype=np.uint8)
        return noise, f"{len(noise)} images of noise (pass --data for photos)"
    split = _split(checkpoint, data)
    paths = [data / s.path for images in split.test.values() for s in images]
    pixels, n_broken = _decode(checkpoint, _draw(paths, count, "parity images"), data)
    skipped = f", {n_broken} unreadable ones left out" if n_broken else ""
    return pixels, f"{len(pixels)} test images of {data.name}{skipped}"


def collect_calibration(
    checkpoint: Checkpoint, checkpoint_path: Path, data: Path | None, count: int
) -> tuple[NDArray[np.uint8], str]:
    """Training images that set the scales of int8: uint8 [n, height, width, 3], and which.

    Test images never do: they measure what came of it.

    Args:
        data: a folder of domains; None takes the one that the run folder names.
        count: how many at most, drawn from a fixed seed; 0 takes all.

    Raises:
        DataError: no folder, or no readable image in it.
    """
    data = data or root_of_run(checkpoint_path)
    if data is None:
        raise DataError(
            where="--precision int8",
            found="no images to calibrate with: the run folder's own are not here",
            expected="images like those that will be classified",
            next_step="pass --calibration ROOT, a folder of domains",
        )
    split = _split(checkpoint, data)
    paths = [data / s.path for images in split.train.values() for s in images]
    pixels, n_broken = _decode(checkpoint, _draw(paths, count, "calibration images"), data)
    skipped = f", {n_broken} unreadable ones left out" if n_broken else ""
    return pixels, f"{len(pixels)} training images of {data.name}{skipped}"


def _split(checkpoint: Checkpoint, data: Path) -> Split:
    # the split asks for no labels, and neither use needs them: any folder of domains will do
    config = checkpoint.info.config.data
    return split_folders(
        scan_folders(data),
        config.test_fraction,
        config.split_seed,
        validation_fraction=config.validation_fraction,
    )


def _draw(paths: list[Path], count: int, purpose: str) -> list[Path]:
    if not count or len(paths) <= count:
        return paths
    chosen = np.random.default_rng(child_seed(0, purpose)).permutation(len(paths))
    return [paths[i] for i in sorted(chosen[:count])]


def _decode(checkpoint: Checkpoint, paths: list[Path], data: Path) -> tuple[NDArray[np.uint8], int]:
    """The readable ones, and how many are not."""
    preprocessing = Preprocessing.from_dict(checkpoint.info.preprocessing)
    decoded = decode_ahead(paths, preprocessing, workers=4, ahead=64)
    pixels = [item.pixels for item in decoded if item.pixels is not None]
    if not pixels:
        raise DataError(
            where=data,
            found=f"no readable image among {len(paths)}",
            expected="images to compare the graph on, or to calibrate it with",
            next_step="pass a folder with readable images",
        )
    return np.stack(pixels), len(paths) - len(pixels)


def root_of_run(checkpoint_path: Path) -> Path | None:
    """The images that the run folder of a checkpoint names, where they are still there."""
    config = checkpoint_path.parent / "config.toml"
    if not config.is_file():
        return None
    root = Path(read_config(config).data.root)
    return root if root.is_dir() else None
