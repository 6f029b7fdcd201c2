"""Images for the comparison of an exported graph with its checkpoint, and for calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedapt.core.errors import DataError
from fedapt.core.seeds import child_seed
from fedapt.data.collection import Collection, open_collection
from fedapt.data.features import ImageEncoder, extract_features
from fedapt.data.folders import Sample
from fedapt.model.checkpoint import Checkpoint
from fedapt.run.folder import RunFolder
from fedapt_runtime.pipeline import decode_ahead

_PARITY = "parity images"
_KINDS = {"train": "training images", "test": "test images"}


def collect_images(
    checkpoint: Checkpoint, data: Path | None, count: int
) -> tuple[NDArray[np.uint8], str]:
    """Test images for a comparison: uint8 [n, height, width, 3], and their description.

    See `collect_labelled_images`.
    """
    return collect_labelled_images(checkpoint, data, count)[:2]


def collect_labelled_images(
    checkpoint: Checkpoint, data: Path | None, count: int
) -> tuple[NDArray[np.uint8], str, list[tuple[str, int]]]:
    """Test images for a comparison.

    Args:
        checkpoint: the checkpoint.
        data: a folder of domains; None means noise.
        count: maximum number of images, drawn from a fixed seed; 0 takes all.

    Returns:
        uint8 [n, height, width, 3], a description of the images, and (domain, label) of each, with
        the checkpoint's class numbers. The last is empty for noise and for other classes.

    Raises:
        DataError: there is no readable test image.
    """
    if data is None:
        return *_make_noise(checkpoint, count), []
    images = open_images(checkpoint, data)
    if set(images.classes) <= set(checkpoint.info.classes):
        images = images.renumber(checkpoint.info.classes, "the checkpoint")
        return _collect(checkpoint, images, "test", _PARITY, count)
    return *_collect(checkpoint, images, "test", _PARITY, count)[:2], []


def collect_features(
    checkpoint: Checkpoint, data: Path | None, count: int, encoder: ImageEncoder
) -> tuple[NDArray[np.float32], str]:
    """Features of the same test images, float32 [n, D], and a description of the images.

    The feature cache is used. See `collect_labelled_images`.
    """
    if data is None:
        noise, source = _make_noise(checkpoint, count)
        return encoder.encode(noise), source
    images = open_images(checkpoint, data)
    paths = [images.root / sample.path for _, sample in _choose(images, "test", _PARITY, count)]
    found = extract_features(paths, encoder)
    return np.array(found.values), _describe(images, "test", len(found.kept), len(paths))


def collect_calibration(
    checkpoint: Checkpoint, data: Path | None, count: int
) -> tuple[NDArray[np.uint8], str]:
    """Training images that set the scales of int8: uint8 [n, height, width, 3], and a description.

    Test images are not used, because they measure the result.

    Args:
        checkpoint: the checkpoint.
        data: a folder of domains.
        count: maximum number of images, drawn from a fixed seed; 0 takes all.

    Raises:
        DataError: there is no folder, or no readable image in it.
    """
    if data is None:
        raise DataError(
            where="precision int8",
            found="no calibration images: the images of the run folder do not exist here",
            expected="images like those that will be classified",
            next_step="name a folder of domains with `calibration`",
        )
    images = open_images(checkpoint, data)
    return _collect(checkpoint, images, "train", "calibration images", count)[:2]


def open_images(checkpoint: Checkpoint, data: Path) -> Collection:
    """The images of a folder of domains, with the class names and splits of the training."""
    return open_collection(checkpoint.info.config.data, data, training=False)


def _collect(
    checkpoint: Checkpoint, images: Collection, part: str, purpose: str, count: int
) -> tuple[NDArray[np.uint8], str, list[tuple[str, int]]]:
    """Readable images among `count` drawn for a purpose, their description, domains and labels."""
    samples = _choose(images, part, purpose, count)
    paths = [images.root / sample.path for _, sample in samples]
    decoded = list(decode_ahead(paths, checkpoint.info.preprocessing, workers=4, ahead=64))
    pixels = [item.pixels for item in decoded if item.pixels is not None]
    truth = [
        (domain, sample.label)
        for (domain, sample), item in zip(samples, decoded, strict=True)
        if item.pixels is not None
    ]
    source = _describe(images, part, len(pixels), len(paths))
    return np.stack(pixels), source, truth


def _choose(images: Collection, part: str, purpose: str, count: int) -> list[tuple[str, Sample]]:
    """At most `count` samples with their domains, drawn for a purpose; 0 takes all."""
    samples = list(images.samples(part))
    if count and len(samples) > count:
        chosen = np.random.default_rng(child_seed(0, purpose)).permutation(len(samples))
        samples = [samples[i] for i in sorted(chosen[:count])]
    return samples


def _describe(images: Collection, part: str, n_read: int, n_images: int) -> str:
    if not n_read:
        raise DataError(
            where=images.root,
            found=f"no readable image among {n_images}",
            expected="images to compare the graph on, or to calibrate it with",
            next_step="pass a folder with readable images",
        )
    n_broken = n_images - n_read
    skipped = f", without {n_broken} unreadable ones" if n_broken else ""
    return f"{n_read} {_KINDS[part]} of {images.root.name}{skipped}"


def _make_noise(checkpoint: Checkpoint, count: int) -> tuple[NDArray[np.uint8], str]:
    generator = np.random.default_rng(child_seed(0, _PARITY))
    shape = (min(count or 64, 64), *checkpoint.info.preprocessing.size, 3)
    noise = generator.integers(0, 256, shape, dtype=np.uint8)
    return noise, f"{len(noise)} images of noise"


def root_of_run(checkpoint_path: Path) -> Path | None:
    """The images that the checkpoint's run folder names, if they still exist."""
    return RunFolder(checkpoint_path.parent).find_images()
