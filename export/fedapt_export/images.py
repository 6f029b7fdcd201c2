"""The images on which an exported graph is compared with its checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedapt.core.config import read_config
from fedapt.core.errors import DataError
from fedapt.core.seeds import child_seed
from fedapt.data.folders import scan_folders
from fedapt.data.splits import split_folders
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
    info = checkpoint.info
    # the split asks for no labels, and a parity check needs none: any folder of domains will do
    folders = scan_folders(data)
    data_config = info.config.data
    split = split_folders(folders, data_config.test_fraction, data_config.split_seed)
    paths = [folders.root / s.path for d in folders.domains for s in split.test[d]]
    if count and len(paths) > count:
        chosen = np.random.default_rng(child_seed(0, "parity images")).permutation(len(paths))
        paths = [paths[i] for i in sorted(chosen[:count])]
    decoded = decode_ahead(paths, preprocessing, workers=4, ahead=64)
    pixels = [item.pixels for item in decoded if item.pixels is not None]
    if not pixels:
        raise DataError(
            where=data,
            found="no readable test image",
            expected="images to compare the graph on",
            next_step="pass --data ROOT with readable images",
        )
    return np.stack(pixels), f"{len(pixels)} test images of {data.name}"


def root_of_run(checkpoint_path: Path) -> Path | None:
    """The images that the run folder of a checkpoint names, where they are still there."""
    config = checkpoint_path.parent / "config.toml"
    if not config.is_file():
        return None
    root = Path(read_config(config).data.root)
    return root if root.is_dir() else None
