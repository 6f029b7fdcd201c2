"""The images on which an exported graph is compared with its checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedapt.core.errors import DataError
from fedapt.core.seeds import child_seed
from fedapt.data.collection import Collection, open_collection
from fedapt.model.checkpoint import Checkpoint
from fedapt.run.folder import RunFolder
from fedapt_runtime.pipeline import decode_ahead

_PARITY = "parity images"
_KINDS = {"train": "training images", "test": "test images"}


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
    if data is None:
        data = root_of_run(checkpoint_path)
    if data is None:
        generator = np.random.default_rng(child_seed(0, _PARITY))
        shape = (min(count or 64, 64), *checkpoint.info.preprocessing.size, 3)
        noise = generator.integers(0, 256, shape, dtype=np.uint8)
        return noise, f"{len(noise)} images of noise"
    images = open_images(checkpoint, data)
    return _collect(checkpoint, images, "test", _PARITY, count)


def has_photos(checkpoint_path: Path, data: Path | None) -> bool:
    """Whether `collect_images` gives images of the run, rather than noise."""
    return (data or root_of_run(checkpoint_path)) is not None


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
            where="precision int8",
            found="no images to calibrate with: the run folder's own are not here",
            expected="images like those that will be classified",
            next_step="name a folder of domains with `calibration`",
        )
    images = open_images(checkpoint, data)
    return _collect(checkpoint, images, "train", "calibration images", count)


def open_images(checkpoint: Checkpoint, data: Path) -> Collection:
    """Images as the checkpoint's training named and split them; of any folder of domains."""
    return open_collection(checkpoint.info.config.data, data, training=False)


def _collect(
    checkpoint: Checkpoint, images: Collection, part: str, purpose: str, count: int
) -> tuple[NDArray[np.uint8], str]:
    """The readable ones of `count` drawn for a purpose, and a line that says which."""
    paths = images.paths(part)
    if count and len(paths) > count:
        chosen = np.random.default_rng(child_seed(0, purpose)).permutation(len(paths))
        paths = [paths[i] for i in sorted(chosen[:count])]
    decoded = decode_ahead(paths, checkpoint.info.preprocessing, workers=4, ahead=64)
    pixels = [item.pixels for item in decoded if item.pixels is not None]
    if not pixels:
        raise DataError(
            where=images.root,
            found=f"no readable image among {len(paths)}",
            expected="images to compare the graph on, or to calibrate it with",
            next_step="pass a folder with readable images",
        )
    n_broken = len(paths) - len(pixels)
    skipped = f", {n_broken} unreadable ones left out" if n_broken else ""
    return np.stack(pixels), f"{len(pixels)} {_KINDS[part]} of {images.root.name}{skipped}"


def root_of_run(checkpoint_path: Path) -> Path | None:
    """The images that the run folder of a checkpoint names, where they are still there."""
    return RunFolder(checkpoint_path.parent).find_images()
