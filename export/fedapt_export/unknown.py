"""The threshold of the signal for unknown domains, from images that training has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedapt.core.report import Reporter
from fedapt.core.seeds import child_seed
from fedapt.data.features import extract_features
from fedapt.data.folders import scan_folders
from fedapt.data.splits import split_folders
from fedapt.model.backbone import Backbone
from fedapt.model.checkpoint import Checkpoint
from fedapt.model.image_encoder import image_encoder
from fedapt.train.methods.fedapt import ADAPTIVE_NETWORK
from fedapt_export.images import root_of_run
from fedapt_runtime.unknown import calibrate_signal

KEEP = 0.95  # share of images of known domains that must not be flagged
_MOST_IMAGES = 2000
_LEAST_IMAGES = 20  # below that, a threshold at 95 % is one image's doing


def calibrate_unknown(
    checkpoint: Checkpoint,
    checkpoint_path: Path,
    data: Path | None,
    backbone: Backbone,
    reporter: Reporter,
) -> dict[str, Any] | None:
    """The manifest's block `unknown`; None, with a line that says why, where there is nothing.

    The images are the run's validation images, or its test images where it kept no others; labels
    are not used.

    Args:
        data: a folder of domains; None takes the one that the run folder names.
    """
    network = checkpoint.learned[ADAPTIVE_NETWORK].numpy()
    if len(network) < 2:
        reporter.message("no signal for unknown domains: that takes two or more keys")
        return None
    data = data or root_of_run(checkpoint_path)
    paths = [] if data is None else _held_out(checkpoint, data)
    found = extract_features(paths, image_encoder(backbone)).values if paths else ()
    if len(found) < _LEAST_IMAGES:
        reporter.message(
            f"no signal for unknown domains: {len(found)} held-out images of the known ones, and"
            f" it takes {_LEAST_IMAGES} (--data)"
        )
        return None
    signal = calibrate_signal(network, np.asarray(found), KEEP)
    reporter.message(
        f"unknown domains: scores above {signal.threshold:.3g} are flagged, which keeps"
        f" {100 * signal.kept:.1f} % of {signal.images} held-out images"
    )
    return signal.to_block()


def _held_out(checkpoint: Checkpoint, data: Path) -> list[Path]:
    folders = scan_folders(data)
    config = checkpoint.info.config.data
    split = split_folders(
        folders,
        config.test_fraction,
        config.split_seed,
        validation_fraction=config.validation_fraction,
    )
    known = [name for name in folders.domains if name in checkpoint.info.domains]
    paths = [
        folders.root / sample.path
        for name in known
        for sample in (split.validation[name] or split.test[name])
    ]
    if len(paths) > _MOST_IMAGES:
        order = np.random.default_rng(child_seed(0, "unknown domains")).permutation(len(paths))
        paths = [paths[i] for i in sorted(order[:_MOST_IMAGES])]
    return paths
